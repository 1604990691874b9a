from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch

from llmreg.dataset import Pair
from llmreg.errors import UserError
from llmreg.preprocessing.planning import plan_configuration
from llmreg.preprocessing.plans import AugmentationSettings
from llmreg.preprocessing.preprocess import read_volume
from llmreg.training.pairs import TrainingPairs, batches, common_labels

SHAPE = (60, 64, 70)
PAIRS = (Pair("a", "b"), Pair("b", "c"))


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """Preprocessed cases a, b and c; in b label 2 is not annotated."""
    rng = np.random.default_rng(0)
    for name, annotated in (("a", None), ("b", [1, 3]), ("c", [2, 3])):
        blosc2.asarray(rng.random(SHAPE, np.float32), urlpath=str(tmp_path / f"{name}.b2nd"), mode="w")
        labels = rng.integers(0, 4, SHAPE, np.uint8)
        blosc2.asarray(labels, urlpath=str(tmp_path / f"{name}_seg.b2nd"), mode="w")
        (tmp_path / f"{name}.json").write_text(json.dumps({"annotated_labels": annotated}))
    return tmp_path


@pytest.fixture
def minute() -> Iterator[None]:
    """Fail instead of waiting for ever."""

    def too_long(*_: object) -> None:
        raise TimeoutError("no batch for a minute")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def training_pairs(folder: Path) -> TrainingPairs:
    configuration = plan_configuration(SHAPE[::-1], 2)
    return TrainingPairs(folder, PAIRS, [1, 2, 3], configuration, AugmentationSettings(mirror_axes=("x",)), (7,))


def test_only_labels_that_are_annotated_in_both_count(volumes: Path) -> None:
    assert common_labels(volumes, PAIRS, [1, 2, 3]) == {PAIRS[0]: [1, 3], PAIRS[1]: [3]}


def test_workers_change_nothing(volumes: Path, minute: None) -> None:
    # As in a training, this process has read volumes with blosc2's threads before the workers start.
    blosc2.set_nthreads(2)
    read_volume(volumes / "a.b2nd")
    pairs = training_pairs(volumes)
    here = list(batches(pairs, range(4), 1, workers=0))
    apart = list(batches(pairs, range(4), 1, workers=1))
    assert len(here) == len(apart) == 4
    for one, other in zip(here, apart, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert here[0]["fixed"].shape == (1, 1, 64, 64, 96)


def test_samples_are_the_same_after_an_interruption(volumes: Path) -> None:
    pairs = training_pairs(volumes)
    whole, rest = list(batches(pairs, range(4), 1, 0)), list(batches(pairs, range(2, 4), 1, 0))
    for one, other in zip(whole[2:], rest, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_batch_counts_what_all_its_pairs_know(volumes: Path) -> None:
    for batch in batches(training_pairs(volumes), range(8), 4, 0):
        assert batch["labels"].tolist() in ([3], [1, 3])
        assert batch["moving_labels"].shape == (4, 64, 64, 96)


def test_a_workers_error_is_one_sentence(volumes: Path, minute: None) -> None:
    pairs = training_pairs(volumes)
    for path in volumes.glob("*_seg.b2nd"):
        path.unlink()
    with pytest.raises(UserError, match=r"^\S+_seg\.b2nd does not exist: run llmreg_plan_and_preprocess first\.$"):
        next(batches(pairs, range(2), 1, workers=1))
