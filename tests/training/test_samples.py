from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import torch
from tiny_fold import make_plans
from torch.utils.data import DataLoader, Dataset

from llmreg.data.dataset import Pair
from llmreg.devices import Machine
from llmreg.errors import NotPrepared
from llmreg.networks.llm_morph.plugin import LLMMorphSettings
from llmreg.plans.plan_settings import AugmentationSettings, Training
from llmreg.preprocessing.planning.sizes import Budget, plan_configuration
from llmreg.preprocessing.preprocessed_volumes import read_volume
from llmreg.training.distributed import DistributedContext
from llmreg.training.options import FoldData
from llmreg.training.samples import TrainingPairs, common_labels, load_batches, load_case, number_samples

SHAPE = (60, 64, 70)
PAIRS = (Pair("a", "b"), Pair("b", "c"))


def write(path: Path, values: np.ndarray) -> None:
    blosc2.asarray(values, urlpath=str(path), mode="w")


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """Preprocessed cases a, b and c; in b label 2 is not annotated, in c label 1. Nothing is in d."""
    rng = np.random.default_rng(0)
    for name, annotated in (("a", [1, 2, 3]), ("b", [1, 3]), ("c", [2, 3]), ("d", [])):
        write(tmp_path / f"{name}.b2nd", rng.random(SHAPE, np.float32))
        write(tmp_path / f"{name}_seen.b2nd", rng.integers(0, 2, SHAPE, np.uint8))
        if annotated:
            write(tmp_path / f"{name}_seg.b2nd", rng.integers(0, 4, SHAPE, np.uint8))
        (tmp_path / f"{name}.json").write_text(json.dumps({"annotated_labels": annotated}))
    return tmp_path


@pytest.fixture
def time_limit() -> Iterator[None]:
    """Fail instead of waiting for ever."""

    def fail(*_: object) -> None:
        raise TimeoutError("no batch for ten minutes")

    usual_handler = signal.signal(signal.SIGALRM, fail)
    signal.alarm(600)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, usual_handler)


HALF = plan_configuration(SHAPE[::-1], 2, LLMMorphSettings(), Budget(Machine("cpu", 16, 2, False)))
UNCHANGED = AugmentationSettings(spatial_probability=0, intensity_probability=0)


def training_pairs(
    folder: Path, pairs: Sequence[Pair] = PAIRS, *, unlabelled: bool = False, bidirectional: bool = False, **plans: Any
) -> TrainingPairs:
    changes = {"augmentation": AugmentationSettings(mirror_axes=("x",)), "loss": {"similarity": int(unlabelled)}}
    fold = FoldData("0", pairs, (), folder, folder)
    plans = make_plans({"bidirectional": bidirectional}, **(changes | plans))
    return TrainingPairs(
        fold, HALF, plans.training, plans.augmentation, use_unlabelled=plans.loss.uses_unlabelled_pairs
    )


def batches_of_one(numbers: range) -> list[list[int]]:
    return [[number] for number in numbers]


def test_only_labels_that_are_annotated_in_both_count(volumes: Path) -> None:
    unlabelled_pair = Pair("a", "d")
    assert common_labels(volumes, [*PAIRS, unlabelled_pair]) == {PAIRS[0]: [1, 3], PAIRS[1]: [3], unlabelled_pair: []}


def test_a_case_is_padded_and_the_padding_is_not_seen(volumes: Path) -> None:
    case = load_case(volumes, "b", HALF)
    inside = np.s_[2:62, :, 13:83]
    for array, name in ((case.image, "b"), (case.labels, "b_seg"), (case.seen, "b_seen")):
        assert array.shape == (64, 64, 96)
        np.testing.assert_array_equal(array[inside], read_volume(volumes / f"{name}.b2nd"))
        assert array.sum(dtype=float) == pytest.approx(array[inside].sum(dtype=float))


def test_a_case_without_annotation_has_an_empty_label_map(volumes: Path) -> None:
    labels = load_case(volumes, "d", HALF).labels
    assert (labels.shape, labels.dtype, labels.any()) == ((64, 64, 96), np.uint8, False)


def describe_sample(volumes: Path, sample: dict[str, torch.Tensor]) -> str:
    """Name the fixed and the moving case of an unchanged sample, and its labels."""
    corner = {float(read_volume(volumes / f"{name}.b2nd")[30, 30, 30]): name for name in "abcd"}
    cases = [corner[float(sample[role][0, 32, 30, 43])] for role in ("fixed", "moving")]
    return "".join(cases) + "".join(map(str, sample["labels"].tolist()))


def test_pairs_are_turned_about_half_of_the_time(volumes: Path) -> None:
    pairs = training_pairs(volumes, bidirectional=True, augmentation=UNCHANGED)
    drawn = [describe_sample(volumes, pairs[index]) for index in range(40)]
    # Pairs come in both directions, with their labels.
    assert set(drawn) == {"ab13", "ba13", "bc3", "cb3"}
    assert 12 < sum(name[:2] in ("ba", "cb") for name in drawn) < 28
    # A sample depends on its number alone.
    assert [describe_sample(volumes, pairs[index]) for index in (31, 3, 17)] == [drawn[31], drawn[3], drawn[17]]
    straight = training_pairs(volumes, augmentation=UNCHANGED)
    assert {describe_sample(volumes, straight[index]) for index in range(20)} == {"ab13", "bc3"}


def test_a_turned_pair_has_everything_turned(volumes: Path) -> None:
    pairs = training_pairs(volumes, [Pair("a", "b")], bidirectional=True, augmentation=UNCHANGED)
    straight, turned = (
        next(s for s in (pairs[k] for k in range(50)) if describe_sample(volumes, s) == name)
        for name in ("ab13", "ba13")
    )
    for suffix in ("", "_labels", "_seen"):
        assert torch.equal(straight[f"fixed{suffix}"], turned[f"moving{suffix}"])
        assert torch.equal(straight[f"moving{suffix}"], turned[f"fixed{suffix}"])
        assert not torch.equal(straight[f"fixed{suffix}"], turned[f"fixed{suffix}"])


def test_pairs_without_labels_are_drawn_where_asked_for(volumes: Path) -> None:
    pairs = [*PAIRS, Pair("a", "d"), Pair("d", "c")]
    assert len(training_pairs(volumes, pairs)) == 2
    training_set = training_pairs(volumes, pairs, unlabelled=True, augmentation=UNCHANGED)
    assert len(training_set) == 4
    samples = [training_set[index] for index in range(24)]
    assert {describe_sample(volumes, sample) for sample in samples} == {"ab13", "bc3", "ad", "dc"}
    for sample in samples:
        fixed, moving = describe_sample(volumes, sample)[:2]
        for role, case in (("fixed", fixed), ("moving", moving)):
            assert bool(sample[f"{role}_labels"].any()) == (case != "d")
            assert sample[f"{role}_seen"].any()
    batch = next(load_batches(training_set, [list(range(8))], 0))
    assert batch["labels"].tolist() == []
    assert batch["fixed_labels"].shape == (8, 64, 64, 96)


def test_workers_change_nothing(volumes: Path, time_limit: None) -> None:
    # As in a training, this process has read volumes with blosc2's threads before the workers start.
    blosc2.set_nthreads(2)
    read_volume(volumes / "a.b2nd")
    pairs = training_pairs(volumes)
    expected = list(load_batches(pairs, batches_of_one(range(4)), workers=0))
    actual = list(load_batches(pairs, batches_of_one(range(4)), workers=1))
    assert len(expected) == len(actual) == 4
    for expected_batch, actual_batch in zip(expected, actual, strict=True):
        assert expected_batch.keys() == actual_batch.keys()
        assert all(torch.equal(expected_batch[key], actual_batch[key]) for key in expected_batch)
    assert expected[0]["fixed"].shape == (1, 1, 64, 64, 96)


def test_samples_are_the_same_after_an_interruption(volumes: Path) -> None:
    pairs = training_pairs(volumes)
    undisturbed, resumed = (list(load_batches(pairs, batches_of_one(range(k, 4)), 0)) for k in (0, 2))
    for expected, actual in zip(undisturbed[2:], resumed, strict=True):
        assert all(torch.equal(expected[key], actual[key]) for key in expected)


def test_a_batch_counts_what_all_its_pairs_know(volumes: Path) -> None:
    for batch in load_batches(training_pairs(volumes), [[0, 1, 2, 3], [4, 5, 6, 7]], 0):
        assert batch["labels"].tolist() in ([3], [1, 3])
        assert batch["moving_labels"].shape == (4, 64, 64, 96)


def test_a_sample_says_which_pair_it_is(volumes: Path) -> None:
    pairs = training_pairs(volumes, bidirectional=True, augmentation=UNCHANGED)
    for batch in load_batches(pairs, [[3, 4], [11, 12]], 0):
        for place, number in enumerate(batch["sample"].tolist()):
            sample = {key: batch[key][place] for key in ("fixed", "moving")} | {"labels": batch["labels"]}
            pair = pairs.pair(number)
            assert describe_sample(volumes, sample)[:2] == pair.fixed + pair.moving


@pytest.mark.parametrize(("size", "accumulate", "world"), [(1, 1, 1), (1, 1, 3), (2, 2, 2), (3, 2, 1)])
def test_processes_share_what_one_with_more_accumulation_sees(size: int, accumulate: int, world: int) -> None:
    cpu, steps = torch.device("cpu"), range(5, 8)
    batches_by_process = [
        number_samples(steps, Training(batch_size=size, accumulate=accumulate), DistributedContext(k, world, cpu))
        for k in range(world)
    ]
    alone = number_samples(
        steps, Training(batch_size=size, accumulate=accumulate * world), DistributedContext(0, 1, cpu)
    )
    for step in range(len(steps)):
        parts = [
            batch
            for process_batches in batches_by_process
            for batch in process_batches[step * accumulate : (step + 1) * accumulate]
        ]
        assert sorted(parts) == sorted(alone[step * accumulate * world : (step + 1) * accumulate * world])
    drawn = [number for batch in alone for number in batch]
    per_step = size * accumulate * world
    assert drawn == list(range(5 * per_step, 8 * per_step))


def test_when_a_worker_is_killed_the_rest_is_loaded_here(
    volumes: Path, time_limit: None, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = training_pairs(volumes)
    expected = list(load_batches(pairs, batches_of_one(range(16)), workers=0))
    loading = load_batches(pairs, batches_of_one(range(16)), workers=1)
    batches = [next(loading)]
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    batches += list(loading)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert len(batches) == 16
    for expected_batch, batch in zip(expected, batches, strict=True):
        assert all(torch.equal(expected_batch[key], batch[key]) for key in expected_batch)


@pytest.mark.parametrize("loss", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_when_a_batch_is_lost_on_its_way_the_rest_is_loaded_here(
    volumes: Path, loss: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class BreakingLoader(DataLoader):
        def __init__(self, dataset: Dataset, *, batch_size: None, sampler: Sequence[list[int]], **_: object) -> None:
            super().__init__(dataset, batch_size=batch_size, sampler=sampler)

        def __iter__(self) -> Iterator[Any]:
            yield from itertools.islice(super().__iter__(), 2)
            raise loss

    pairs = training_pairs(volumes)
    expected = list(load_batches(pairs, batches_of_one(range(5)), workers=0))
    monkeypatch.setattr("llmreg.training.samples.DataLoader", BreakingLoader)
    batches = list(load_batches(pairs, batches_of_one(range(5)), workers=1))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert [batch["sample"].item() for batch in batches] == [batch["sample"].item() for batch in expected]
    for expected_batch, batch in zip(expected, batches, strict=True):
        assert all(torch.equal(expected_batch[key], batch[key]) for key in expected_batch)


@pytest.mark.parametrize("suffix", ["", "_seen", "_seg"])
def test_a_volume_that_is_lost_is_the_same_error_from_a_worker(volumes: Path, time_limit: None, suffix: str) -> None:
    pairs = training_pairs(volumes)
    for name in "abc":
        (volumes / f"{name}{suffix}.b2nd").unlink()
    with pytest.raises(NotPrepared) as refusal:
        next(load_batches(pairs, batches_of_one(range(2)), workers=0 if suffix else 1))
    assert refusal.value.step == "preprocess"
    assert Path(refusal.value.path).parent == volumes
    assert Path(refusal.value.path).name in [f"{name}{suffix}.b2nd" for name in "abc"]
