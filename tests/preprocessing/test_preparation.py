"""The steps before training on a tiny dataset: what is done again when something changed, and what is kept."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rewritten import recompress
from simulated_studies import GPU, brain
from toy_dataset import CASES, NAME, write_raw

from llmreg.data.dataset import Dataset
from llmreg.data.splits import make_splits
from llmreg.errors import BadPlans, EditedPlans, NotPrepared, UserError
from llmreg.files import read_json, write_json
from llmreg.geometry.grid import Grid
from llmreg.plans.plans import Plans, plans_path, read_plans, write_plans
from llmreg.preprocessing import preparation
from llmreg.preprocessing.plan_report import REPORT_FILE
from llmreg.preprocessing.planning.planner import PlannerOverrides
from llmreg.preprocessing.preparation import (
    check_unedited,
    complete_plans,
    digest_inputs,
    list_changes,
    read_existing,
)
from llmreg.preprocessing.preprocessed_volumes import read_case_record, read_volume


class Toy:
    """The dataset's folders, and the steps without the search for a pre-alignment and without a report."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.raw, self.folder = home / "raw" / NAME, home / "preprocessed" / NAME
        self.alignments = 0

        def choose_centre(dataset: Dataset, plans: Plans, *_: Any) -> Plans:
            self.alignments += 1
            alignment = plans.prealignment.model_copy(update={"method": "centre"})
            reasons = plans.reasons | {"prealignment": "centre: it is quick."}
            return plans.model_copy(update={"prealignment": alignment, "reasons": reasons})

        monkeypatch.setenv("llmreg_home", str(home))
        monkeypatch.setattr(preparation, "choose_prealignment", choose_centre)
        monkeypatch.setattr(preparation, "write_report", lambda path, *_: path)

    def plan(self, **options: Any) -> Plans:
        """Make the fingerprint and the plans, for 16 GB unless another memory is given."""
        preparation.fingerprint_dataset("1", 1)
        return read_plans(preparation.plan_dataset("1", 1, **({"memory_gb": 16.0} | options)))

    def edit(self, name: str, key: str, value: Any) -> None:
        path = plans_path(self.folder, name)
        content = read_json(path)
        *parents, last = key.split(".")
        place = content
        for parent in parents:
            place = place[parent]
        place[last] = value
        write_json(path, content)

    def add_configuration(self, name: str = "default") -> None:
        half = read_plans(plans_path(self.folder, name)).configurations["half"]
        self.edit(name, "configurations.mine", json.loads(half.model_dump_json()) | {"memory_gb": 3.0})

    def contents(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.glob("*.json")}

    def volume_times(self) -> dict[str, int]:
        """Return when each preprocessed volume was written, by its name."""
        return {path.name: path.stat().st_mtime_ns for path in self.folder.glob("volumes_*/*.b2nd")}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    write_raw(tmp_path)
    return Toy(tmp_path, monkeypatch)


def test_planning_again_keeps_plans_and_edits_when_nothing_changed(toy: Toy) -> None:
    toy.plan()
    before = toy.contents()
    assert before.keys() == {"plans.json", "plans_paper.json", "splits.json", "dataset_fingerprint.json"}
    toy.plan()
    assert toy.contents() == before
    toy.edit("default", "loss.smoothness", 0.25)
    toy.edit("paper", "training.epochs", 7)
    toy.add_configuration()
    edited = toy.contents()
    plans = toy.plan()
    assert toy.contents() == edited
    assert plans.loss.smoothness == 0.25
    assert toy.alignments == 1


def test_plans_are_made_anew_when_the_memory_is_another(toy: Toy) -> None:
    ample = toy.plan()
    assert ample.reasons["prealignment"] == "centre: it is quick."
    needed = max(configuration.memory_gb for configuration in ample.configurations.values())
    scarce = toy.plan(memory_gb=needed - 0.02)
    assert toy.alignments == 2
    assert scarce.configuration(scarce.default_configuration).memory_gb <= needed - 0.02
    assert scarce.network.width < 16 or scarce.configurations["full"].recompute
    paper = read_plans(toy.folder / "plans_paper.json")
    assert paper.network == scarce.network.model_copy(update={"cost_volume": 0})
    assert toy.plan(memory_gb=16.0) == ample


@pytest.mark.parametrize("change", ["memory", "option", "spacing", "image", "dataset.json", "splits"])
def test_of_plans_made_anew_the_users_configurations_are_kept(toy: Toy, change: str) -> None:
    toy.plan()
    toy.add_configuration()
    options = make_another(toy, change)
    plans = toy.plan(**options)
    assert toy.alignments == 2
    assert plans.configurations["mine"].memory_gb == 3
    assert "mine" not in read_plans(toy.folder / "plans_paper.json").configurations
    # The added configuration is no edit: planning again has nothing to do, and the next change keeps it too.
    toy.plan(**options)
    assert toy.alignments == 2
    assert "mine" in toy.plan(memory_gb=17.0).configurations


def make_another(toy: Toy, change: str) -> dict[str, Any]:
    """Change something that plans are made from, and return the options for the planner."""
    if change == "memory":
        return {"memory_gb": 15.0}
    if change == "option":
        return {"overrides": PlannerOverrides(configuration="full")}
    if change == "spacing":
        return {"overrides": PlannerOverrides(spacing=(7.0, 7.0, 7.0))}
    if change == "image":
        recompress(toy.raw / f"imagesTr/{CASES[-1]}.nii.gz")
    elif change == "dataset.json":
        content = read_json(toy.raw / "dataset.json") | {"pairings": "intra_subject"}
        write_json(toy.raw / "dataset.json", content)
    else:
        splits = read_json(toy.folder / "splits.json")
        write_json(toy.folder / "splits.json", splits[:1])
    return {}


def test_edited_plans_are_replaced_when_told_to_alone(toy: Toy) -> None:
    first = toy.plan()
    toy.edit("default", "loss.smoothness", 0.25)
    toy.add_configuration()
    before = toy.contents()
    with pytest.raises(EditedPlans) as refusal:
        toy.plan(memory_gb=15.0)
    assert (refusal.value.path.name, refusal.value.changes) == ("plans.json", "the memory to plan for")
    assert toy.contents() == before
    again = toy.plan(memory_gb=15.0, overwrite=True)
    assert again.loss == first.loss
    assert "mine" in again.configurations
    toy.edit("paper", "training.epochs", 7)
    with pytest.raises(EditedPlans) as refusal:
        toy.plan()
    assert refusal.value.path.name == "plans_paper.json"


def test_what_was_removed_is_written_again(toy: Toy) -> None:
    toy.plan()
    before = toy.contents()
    for name in ("splits.json", "plans_paper.json"):
        (toy.folder / name).unlink()
        toy.edit("default", "loss.smoothness", 0.25)
        edited = (toy.folder / "plans.json").read_bytes()
        toy.plan()
        assert (toy.folder / "plans.json").read_bytes() == edited
        assert (toy.folder / name).exists()
    assert (toy.folder / "splits.json").read_bytes() == before["splits.json"]
    toy.plan()
    preparation.preprocess_dataset("1", "default", 1)
    volume = next(toy.folder.glob("volumes_*/*_seen.b2nd"))
    volume.unlink()
    preparation.preprocess_dataset("1", "default", 1)
    assert volume.exists()


def test_plans_that_cannot_be_read_are_replaced_when_told_to(toy: Toy) -> None:
    first = toy.plan()
    toy.edit("default", "loss.smoothness", "much")
    with pytest.raises(BadPlans) as refusal:
        toy.plan()
    assert refusal.value.key == "loss.smoothness"
    assert toy.plan(overwrite=True) == first


def test_overwrite_replaces_edits_when_nothing_else_changed(toy: Toy) -> None:
    first = toy.plan()
    toy.edit("default", "training.epochs", 3)
    assert toy.plan().training.epochs == 3
    assert toy.plan(overwrite=True) == first


def test_a_configuration_that_does_not_hold_the_new_grid_is_a_sentence(toy: Toy, tmp_path: Path) -> None:
    small = toy.plan()
    toy.add_configuration()
    before = (toy.folder / "plans.json").read_bytes()
    write_raw(tmp_path, spacing=3.0)
    with pytest.raises(BadPlans, match=r"configurations\.mine\.padded_size") as refusal:
        toy.plan()
    assert str(refusal.value.source).startswith(str(toy.folder / "plans.json"))
    assert (toy.folder / "plans.json").read_bytes() == before
    toy.edit("default", "configurations", read_json(toy.folder / "plans_paper.json")["configurations"])
    assert toy.plan().size > small.size


def test_plans_need_a_fingerprint_and_an_old_one_is_made_anew(toy: Toy) -> None:
    with pytest.raises(NotPrepared) as refusal:
        preparation.plan_dataset("1", 1)
    assert (refusal.value.step, refusal.value.dataset) == ("fingerprint", "1")
    first = toy.plan()
    path = toy.folder / "dataset_fingerprint.json"
    content = read_json(path)
    del content["annotated_cases"]
    write_json(path, content)
    with pytest.raises(UserError, match="annotated_cases"):
        preparation.plan_dataset("1", 1, memory_gb=16.0)
    assert toy.plan() == first
    assert toy.alignments == 1


def changed_volumes(before: dict[str, int], after: dict[str, int]) -> set[str]:
    return {name for name in after if after[name] != before.get(name)}


def volumes_of(*cases: str) -> set[str]:
    return {f"{case}{suffix}.b2nd" for case in cases for suffix in ("", "_seen", "_seg")}


def test_only_what_changed_is_preprocessed_again(toy: Toy) -> None:
    reference = toy.plan().prealignment.reference_case
    other = next(case for case in CASES if case != reference)
    preparation.preprocess_dataset("1", "default", 1)
    first = toy.volume_times()
    assert first.keys() == volumes_of(*CASES)
    # Copies and mounts change times; that is no change.
    os.utime(toy.raw / f"labelsTr/{other}.nii.gz", ns=(5, 5))
    preparation.preprocess_dataset("1", "default", 1)
    assert toy.volume_times() == first
    recompress(toy.raw / f"labelsTr/{other}.nii.gz")
    preparation.preprocess_dataset("1", "default", 1)
    second = toy.volume_times()
    assert changed_volumes(first, second) == volumes_of(other)
    (next(toy.folder.glob("volumes_*")) / f"{other}.json").unlink()
    preparation.preprocess_dataset("1", "default", 1)
    third = toy.volume_times()
    assert changed_volumes(second, third) == volumes_of(other)
    # All cases were placed by the reference.
    recompress(toy.raw / f"imagesTr/{reference}.nii.gz")
    preparation.preprocess_dataset("1", "default", 1)
    assert changed_volumes(third, toy.volume_times()) == volumes_of(*CASES)


def test_a_clean_start_does_all_again_but_keeps_plans(toy: Toy) -> None:
    toy.plan()
    preparation.preprocess_dataset("1", "default", 1)
    toy.edit("default", "loss.smoothness", 0.25)
    before, contents = toy.volume_times(), toy.contents()
    preparation.fingerprint_dataset("1", 1, clean=True)
    toy.plan()
    preparation.preprocess_dataset("1", "default", 1, clean=True)
    assert toy.contents() == contents
    assert changed_volumes(before, toy.volume_times()) == before.keys()
    assert toy.alignments == 1


@pytest.mark.parametrize("labelled", [True, False])
def test_the_whole_way_and_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labelled: bool) -> None:
    monkeypatch.setenv("llmreg_home", str(tmp_path))
    write_raw(tmp_path, labelled=labelled)
    preparation.fingerprint_dataset("1", 1)
    plans = read_plans(preparation.plan_dataset("1", 1, memory_gb=16.0))
    folder = preparation.preprocess_dataset("1", "default", 1)
    for case in CASES:
        assert read_volume(folder / f"{case}.b2nd").shape == plans.frame.shape
        assert (folder / f"{case}_seg.b2nd").exists() == labelled
        record = read_case_record(folder, case)
        assert record["annotated_labels"] == ([1, 2] if labelled else [])
        check_seen(read_volume(folder / f"{case}_seen.b2nd"), record, plans.frame)
        # The body's middle is in the middle of the frame, to a few voxels.
        body = read_volume(folder / f"{case}.b2nd") > 0.2
        middle = np.mean(np.argwhere(body), axis=0) - (np.array(plans.frame.shape) - 1) / 2
        assert np.abs(middle).max() * plans.spacing[0] < 20
    assert (plans.loss.dice, plans.loss.similarity) == ((1, 0) if labelled else (0, 1))
    assert (tmp_path / "preprocessed" / NAME / REPORT_FILE).exists()


def check_seen(seen_volume: np.ndarray, record: dict[str, Any], frame: Grid) -> None:
    """Check that a voxel is seen where the transform leads into the case's grid; on its edge, it may be either."""
    transform, grid = record["transform"], Grid.from_dict(record["grid"])
    points = frame.physical_points() @ np.transpose(transform["matrix"]) + transform["translation"]
    inside_above, inside_below = (grid.contains(points + shift) for shift in (0.01, -0.01))
    np.testing.assert_array_equal(
        seen_volume[inside_above == inside_below] > 0, inside_above[inside_above == inside_below]
    )
    assert 0.3 < inside_above.mean() < 1
    assert (inside_above == inside_below).mean() > 0.8


def digests(**changes) -> dict[str, str]:
    study = brain()
    inputs = {
        "dataset": study.dataset,
        "fingerprint": study.fingerprint,
        "splits": make_splits(study.dataset),
        "machine": GPU,
        "overrides": PlannerOverrides(),
    }
    return digest_inputs(**(inputs | changes))


@pytest.fixture
def plans() -> Plans:
    return complete_plans(Path("plans.json"), brain().plans(), None, digests())


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"dataset": replace(brain().dataset, pairing="intra_subject")}, "dataset.json"),
        ({"fingerprint": brain(9.0).fingerprint}, "the fingerprint"),
        ({"splits": make_splits(brain().dataset)[:1]}, "splits.json"),
        ({"machine": replace(GPU, memory_gb=8)}, "the memory to plan for"),
        ({"overrides": PlannerOverrides(configuration="half")}, "the options"),
    ],
)
def test_each_input_is_named_when_it_changed(plans: Plans, changes: dict, name: str) -> None:
    assert list_changes(plans, digests()) == ""
    assert list_changes(plans, digests(**changes)) == name


def test_inputs_are_recognised_whatever_an_earlier_version_called_them(plans: Plans) -> None:
    renamed = {f"formerly {name}": digest for name, digest in plans.planned.inputs.items()}
    earlier = plans.model_copy(update={"planned": plans.planned.model_copy(update={"inputs": renamed})})
    assert list_changes(earlier, digests()) == ""
    assert list_changes(plans.model_copy(update={"planned": None}), digests()).count(",") == len(digests()) - 1


def test_edits_are_found_but_added_configurations_are_none(plans: Plans) -> None:
    added = {**plans.configurations, "mine": plans.configurations["half"]}
    check_unedited({Path("plans.json"): plans.model_copy(update={"configurations": added})}, "the options")
    edited = plans.model_copy(update={"loss": plans.loss.model_copy(update={"smoothness": 0.3})})
    with pytest.raises(EditedPlans) as refusal:
        check_unedited({Path("a.json"): plans, Path("b.json"): edited}, "the options")
    assert (refusal.value.path, refusal.value.changes) == (Path("b.json"), "the options")
    with pytest.raises(EditedPlans):
        check_unedited({Path("a.json"): plans.model_copy(update={"planned": None})}, "the options")


def test_added_configurations_survive_unless_the_new_grid_is_too_large_for_them(plans: Plans) -> None:
    configurations = {**plans.configurations, "mine": plans.configurations["half"]}
    existing = plans.model_copy(update={"configurations": configurations})
    assert "mine" in complete_plans(Path("plans.json"), plans, existing, {}).configurations
    larger = plans.model_copy(update={"size": (200, 300, 200), "configurations": {}})
    with pytest.raises(BadPlans, match="mine"):
        complete_plans(Path("plans.json"), larger, existing, {})


def test_unreadable_plans_are_no_obstacle_where_they_are_replaced(plans: Plans, tmp_path: Path) -> None:
    path = tmp_path / "plans.json"
    assert read_existing(path, replace=False) is None
    write_plans(path, plans)
    assert read_existing(path, replace=False) == plans
    path.write_text("{}")
    assert read_existing(path, replace=True) is None
    with pytest.raises(UserError):
        read_existing(path, replace=False)
