"""Finding what is needed to score a folder of predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmreg.errors import BadArgument, MissingFile, MissingOutput, NotPrepared, UnreadableFile
from llmreg.evaluation.inputs import find_inputs

FIXED, MOVING = "A_0001_0000", "A_0001_0001"


def write(folder: Path, *pairs: dict[str, Any], **content: Any) -> Path:
    """A folder of predictions of one pair, whose field exists; ``pairs`` change or add keys."""
    folder.mkdir(exist_ok=True)
    (folder / "disp.nii.gz").touch()
    pair = {"pair_id": "p", "fixed": FIXED, "moving": MOVING, "field": "disp.nii.gz"}
    content |= {"pairs": [pair | changes for changes in pairs]}
    (folder / "predict.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    folder = tmp_path / "labels"
    folder.mkdir()
    for case in (FIXED, MOVING):
        (folder / f"{case}.nii.gz").touch()
        (folder / f"{case}.csv").touch()
    return folder


def test_label_maps_and_landmarks_are_found_by_the_names_of_the_cases(tmp_path: Path, labels: Path) -> None:
    folder = write(tmp_path / "out", {"seconds": 2.0, "format": "nifti-ras"}, peak_memory_gb=1.5)
    inputs = find_inputs(folder, labels, labels)
    (pair,) = inputs.pairs
    assert pair.frames == (labels / f"{FIXED}.nii.gz", labels / f"{MOVING}.nii.gz")
    assert pair.landmarks == (labels / f"{FIXED}.csv", labels / f"{MOVING}.csv")
    assert (pair.field, pair.prealignment) == (folder / "disp.nii.gz", None)
    prediction = pair.prediction
    assert (prediction.fixed, prediction.moving) == (FIXED, MOVING)
    assert (prediction.seconds, prediction.format) == (2.0, "nifti-ras")
    assert (pair.labelled, pair.labels, pair.annotated, pair.convention) == (True, None, None, None)
    assert (inputs.name, inputs.predictions.peak_memory_gb) == ("out", 1.5)


def test_recorded_files_are_relative_to_the_folder_or_absolute(tmp_path: Path, labels: Path) -> None:
    recorded = {
        "fixed_label": f"../labels/{FIXED}.nii.gz",
        "moving_label": str(labels / f"{MOVING}.nii.gz"),
        "fixed_points": f"../labels/{FIXED}.csv",
        "moving_points": str(labels / f"{MOVING}.csv"),
    }
    (pair,) = find_inputs(write(tmp_path / "out", recorded), None).pairs
    assert [path.resolve() for path in pair.frames] == [labels / f"{FIXED}.nii.gz", labels / f"{MOVING}.nii.gz"]
    assert pair.landmarks is not None
    assert [path.resolve() for path in pair.landmarks] == [labels / f"{FIXED}.csv", labels / f"{MOVING}.csv"]


def test_the_named_folder_comes_before_the_record(tmp_path: Path, labels: Path) -> None:
    (tmp_path / "other.nii.gz").touch()
    recorded = {"fixed_label": str(tmp_path / "other.nii.gz"), "moving_label": str(tmp_path / "other.nii.gz")}
    folder = write(tmp_path / "out", recorded)
    assert find_inputs(folder, labels).pairs[0].frames[0] == labels / f"{FIXED}.nii.gz"
    (labels / f"{FIXED}.nii.gz").unlink()
    assert find_inputs(folder, labels).pairs[0].frames[0] == tmp_path / "other.nii.gz"


def test_landmarks_are_enough_and_need_the_images(tmp_path: Path, labels: Path) -> None:
    for path in labels.glob("*.nii.gz"):
        path.unlink()
    with pytest.raises(BadArgument) as refusal:
        find_inputs(write(tmp_path / "out", {}), None, labels)
    assert refusal.value.argument == "labels"
    images = {}
    for role in ("fixed", "moving"):
        (tmp_path / f"{role}.nii.gz").touch()
        images[f"{role}_path"] = str(tmp_path / f"{role}.nii.gz")
    (pair,) = find_inputs(write(tmp_path / "out", images), None, labels).pairs
    assert not pair.labelled
    assert pair.frames == (tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz")


def test_failed_pairs_are_listed(tmp_path: Path, labels: Path) -> None:
    folder = write(tmp_path / "out", {}, failed=[{"pair_id": "q", "failed": "broken"}])
    assert [pair.pair_id for pair in find_inputs(folder, labels).predictions.failed] == ["q"]


def test_missing_files_are_named(tmp_path: Path, labels: Path) -> None:
    folder = write(tmp_path / "out", {"prealignment": "prealign.tfm"})
    with pytest.raises(MissingFile) as refusal:
        find_inputs(folder, labels)
    assert refusal.value.path == folder / "prealign.tfm"
    folder = write(tmp_path / "out", {})
    for arguments in ((tmp_path / "gone", None), (labels, tmp_path / "gone")):
        with pytest.raises(MissingFile) as refusal:
            find_inputs(folder, *arguments)
        assert refusal.value.path == tmp_path / "gone"
    with pytest.raises(MissingFile) as refusal:
        find_inputs(write(tmp_path / "out", {"moving_points": "gone.csv"}), labels)
    assert refusal.value.path == folder / "gone.csv"
    (labels / f"{MOVING}.nii.gz").unlink()
    with pytest.raises(MissingFile) as refusal:
        find_inputs(write(tmp_path / "out", {}), labels)
    assert refusal.value.path == labels / f"{MOVING}.nii.gz"
    (folder / "disp.nii.gz").unlink()
    with pytest.raises(MissingFile):
        find_inputs(folder, labels)


def test_arguments_that_do_not_fit_are_named(tmp_path: Path, labels: Path) -> None:
    folder = write(tmp_path / "out", {"field": None})
    with pytest.raises(MissingOutput) as missing:
        find_inputs(folder, labels)
    assert (missing.value.folder, missing.value.output) == (folder, "field")
    folder = write(tmp_path / "out", {})
    with pytest.raises(BadArgument) as refusal:
        find_inputs(folder, None)
    assert refusal.value.argument == "labels"
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadArgument) as refusal:
        find_inputs(folder, labels, tmp_path / "empty")
    assert refusal.value.argument == "landmarks"


def test_a_folder_without_predictions_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(NotPrepared) as refusal:
            find_inputs(folder, None)
        assert refusal.value.step == "predict"
    with pytest.raises(UnreadableFile, match="no pairs"):
        find_inputs(write(tmp_path / "out"), None)
    with pytest.raises(UnreadableFile, match=r"pairs\.0\.fixed"):
        find_inputs(write(tmp_path / "out", {"fixed": 3}), None)
