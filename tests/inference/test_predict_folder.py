"""A folder of pairs, predicted whole, in parts, and again."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk
import torch
from tiny_model_folder import make_plans, write_model, write_pair

from llmreg.errors import BadArgument, HoldsPredictions, MissingFile, OtherPredictions, UserError
from llmreg.inference.models import Model, load_model
from llmreg.inference.pair_inputs import PairInput
from llmreg.inference.pipeline import OutputOptions
from llmreg.inference.predict_folder import (
    PredictionOptions,
    describe_sources,
    find_pending,
    format_failures,
    format_pairs,
    is_current,
    make_record,
    predict_folder,
    remove_prediction,
)
from llmreg.inference.predictor import Predictor, RegistrationOptions
from llmreg.predictions import (
    FailedPair,
    PlacementRecord,
    PredictedPair,
    Provenance,
    read_predictions,
    read_record,
    record_path,
    write_record,
)

FIELD = PredictionOptions(output=OutputOptions(("field",)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(write_model(tmp_path_factory.mktemp("model"), make_plans()))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with the images of two pairs."""
    folder = tmp_path / "in"
    folder.mkdir()
    for subject in (1, 2):
        write_pair(folder, subject)
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def predict(source: Path, out: Path, model: Model, options: PredictionOptions = FIELD, **changes: Any) -> Path | None:
    return predict_folder(source, out, model, torch.device("cpu"), replace(options, **changes))


def times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.glob("disp_*")}


def test_every_pair_is_registered_as_the_predictor_does_it(source: Path, out: Path, model: Model) -> None:
    assert predict(source, out, model) == out / "predict.json"
    predictions = read_predictions(out)
    assert (predictions.model, predictions.folds, predictions.epochs) == (
        "Dataset007_Tiny/voxelmorph__default__full",
        ["0"],
        [3],
    )
    assert predictions.options == {"refine": 0, "diffeomorphic": False, "uncertainty": False}
    assert [pair.pair_id for pair in predictions.pairs] == [f"Tiny_000{k}_0000_Tiny_000{k}_0001" for k in (1, 2)]
    predictor = Predictor(model, torch.device("cpu"))
    for pair in predictions.pairs:
        assert (pair.fixed[-4:], pair.moving[-4:]) == ("0000", "0001")
        stored = sitk.GetArrayFromImage(sitk.ReadImage(str(pair.path("field"))))
        expected = predictor.predict(str(pair.fixed_path), str(pair.moving_path)).field.vectors
        assert abs(stored - expected).max() < 1e-4
    assert (predictions.peak_memory_gb or 0) > 0.05


def test_predictions_are_kept_unless_told_otherwise(source: Path, out: Path, model: Model) -> None:
    predict(source, out, model)
    before = times(out)
    (out / "predict.json").unlink()
    with pytest.raises(HoldsPredictions) as refusal:
        predict(source, out, model)
    assert refusal.value.path == out
    assert times(out) == before
    predict(source, out, model, overwrite=True)
    assert times(out) != before


def test_resuming_predicts_what_is_missing_or_has_changed(source: Path, out: Path, model: Model) -> None:
    predict(source, out, model)
    first, second = sorted(out.glob("disp_*"))
    before = times(out)
    text = (out / "predict.json").read_text()
    predict(source, out, model, resume=True)
    assert times(out) == before
    assert (out / "predict.json").read_text() == text
    first.unlink()
    predict(source, out, model, resume=True)
    assert times(out)[second.name] == before[second.name]
    before = times(out)
    # The moving image of the second pair becomes another, whose time of change is the same.
    changed_image = source / "Tiny_0002_0001.nii.gz"
    stamp = changed_image.stat()
    shutil.copy(source / "Tiny_0001_0001.nii.gz", changed_image)
    os.utime(changed_image, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    predict(source, out, model, resume=True)
    assert times(out)[first.name] == before[first.name]
    assert times(out)[second.name] != before[second.name]


def test_predictions_made_in_another_way_are_not_completed(source: Path, out: Path, model: Model) -> None:
    predict(source, out, model)
    with pytest.raises(OtherPredictions) as refusal:
        predict(source, out, model, registration=RegistrationOptions(diffeomorphic=True), resume=True)
    assert refusal.value.folder == out
    assert "options" in refusal.value.difference


def test_nothing_old_lies_beside_the_new(source: Path, out: Path, model: Model) -> None:
    predict(source, out, model, output=OutputOptions(("field", "prealignment")))
    debris, stranger = (out / f".partial-abcdefgh-{name}.nii.gz" for name in (f"disp_{pair_name(1)}", "other"))
    for path in (debris, stranger):
        path.write_bytes(b"half")
    predict(source, out, model, overwrite=True)
    assert not list(out.glob("prealign*"))
    assert not debris.exists()
    assert stranger.exists()


def pair_name(subject: int) -> str:
    return f"Tiny_000{subject}_0000_Tiny_000{subject}_0001"


def test_parts_are_put_together_by_the_last_one(source: Path, out: Path, model: Model) -> None:
    predict(source, out / "whole", model)
    assert predict(source, out / "parts", model, part=0, parts=2) is None
    assert not (out / "parts" / "predict.json").exists()
    assert predict(source, out / "parts", model, part=1, parts=2) is not None
    expected, actual = (read_predictions(out / name) for name in ("whole", "parts"))
    for expected_pair, actual_pair in zip(expected.pairs, actual.pairs, strict=True):
        assert expected_pair.to_json() | {"seconds": 0} == actual_pair.to_json() | {"seconds": 0}


def test_a_failed_pair_is_recorded_and_tried_again(source: Path, out: Path, model: Model) -> None:
    broken_image = source / "Tiny_0001_0001.nii.gz"
    content = broken_image.read_bytes()
    broken_image.write_bytes(content[:100])
    with pytest.raises(UserError):
        predict(source, out, model)
    record = read_record(out, pair_name(1))
    assert record is not None
    assert isinstance(record.pair, FailedPair)
    predictions = read_predictions(out)
    assert [pair.pair_id for pair in predictions.failed] == [pair_name(1)]
    assert [pair.pair_id for pair in predictions.pairs] == [pair_name(2)]
    # A launcher would start the process anew if it raised an error.
    assert predict(source, out, model, overwrite=True, launched=True) is not None
    before = times(out)
    broken_image.write_bytes(content)
    predict(source, out, model, resume=True)
    assert times(out)[f"disp_{pair_name(2)}.nii.gz"] == before[f"disp_{pair_name(2)}.nii.gz"]
    assert not read_predictions(out).failed


def test_label_maps_of_the_moving_images_are_warped(source: Path, out: Path, model: Model, tmp_path: Path) -> None:
    options = PredictionOptions(output=OutputOptions(("labels",)))
    with pytest.raises(BadArgument) as refusal:
        predict(source, out, model, options)
    assert refusal.value.argument == "labels"
    labels = tmp_path / "labels"
    labels.mkdir()
    with pytest.raises(MissingFile) as missing:
        predict(source, out, model, options, labels=labels)
    assert missing.value.path == labels / "Tiny_0001_0001.nii.gz"
    assert not out.exists()
    for subject in (1, 2):
        image = sitk.ReadImage(str(source / f"Tiny_000{subject}_0001.nii.gz"))
        sitk.WriteImage(sitk.Cast(image > 0, sitk.sitkUInt8) * subject, str(labels / f"Tiny_000{subject}_0001.nii.gz"))
    predict(source, out, model, options, labels=labels)
    for subject, pair in enumerate(read_predictions(out).pairs, start=1):
        warped = sitk.ReadImage(str(pair.path("labels")))
        assert set(sitk.GetArrayFromImage(warped).ravel().tolist()) == {0, subject}
        assert pair.moving_label == str(labels / f"Tiny_000{subject}_0001.nii.gz")


def test_two_pairs_of_one_file_name_are_refused(source: Path, out: Path, model: Model) -> None:
    for path in sorted(source.iterdir()):
        shutil.copy(path, source / path.name.replace("Tiny", "Other"))
    with pytest.raises(UserError, match="would both be"):
        predict(source, out, model, output=OutputOptions(("field",), "learn2reg"))
    assert not out.exists()


def test_records_of_version_0_1_are_resumed(source: Path, out: Path, model: Model) -> None:
    """They may have keys that this version does not know."""
    predict(source, out, model)
    before = times(out)
    for subject in (1, 2):
        path = record_path(out, pair_name(subject))
        path.write_text(json.dumps(json.loads(path.read_text()) | {"llmreg_version": "0.1.0", "more": 1}))
    predict(source, out, model, resume=True)
    assert times(out) == before


PROVENANCE = Provenance(model="m", folds=["0"], options={"refine": 0}, format="itk")
OUTCOME = PredictedPair(pair_id="p", fixed="f", moving="m", field="disp.nii.gz")


@pytest.fixture
def pair(tmp_path: Path) -> PairInput:
    """A pair that is predicted in ``tmp_path``."""
    for name in ("f.nii.gz", "m.nii.gz", "disp.nii.gz"):
        (tmp_path / name).write_bytes(name.encode())
    pair = PairInput("p", "f_m", tmp_path / "f.nii.gz", tmp_path / "m.nii.gz", 0)
    write_record(tmp_path, "f_m", make_record(pair, OUTCOME, PROVENANCE, {"peak_memory_gb": 1.0}))
    return pair


def test_a_predicted_pair_is_not_pending(pair: PairInput, tmp_path: Path) -> None:
    assert find_pending([pair], tmp_path, PROVENANCE, ["field"]) == []


def test_pairs_without_record_or_output_and_failed_ones_are_pending(pair: PairInput, tmp_path: Path) -> None:
    other_pair = replace(pair, name="other")
    assert find_pending([pair, other_pair], tmp_path, PROVENANCE, ["field"]) == [other_pair]
    assert find_pending([pair], tmp_path, PROVENANCE, ["field", "warped"]) == [pair]
    (tmp_path / "disp.nii.gz").unlink()
    assert find_pending([pair], tmp_path, PROVENANCE, ["field"]) == [pair]
    write_record(tmp_path, "f_m", make_record(pair, FailedPair(pair_id="p", failed="broken"), PROVENANCE, {}))
    assert find_pending([pair], tmp_path, PROVENANCE, []) == [pair]


def test_changed_images_and_modalities_are_pending(pair: PairInput, tmp_path: Path) -> None:
    other_pair = replace(pair, fixed_modality=1)
    assert find_pending([other_pair], tmp_path, PROVENANCE, ["field"]) == [other_pair]
    swapped_pair = replace(pair, fixed=pair.moving, moving=pair.fixed)
    assert find_pending([swapped_pair], tmp_path, PROVENANCE, ["field"]) == [swapped_pair]
    pair.moving.write_bytes(b"other")
    assert find_pending([pair], tmp_path, PROVENANCE, ["field"]) == [pair]


def test_touched_images_are_not(pair: PairInput, tmp_path: Path) -> None:
    pair.fixed.touch()
    assert find_pending([pair], tmp_path, PROVENANCE, ["field"]) == []


def test_predictions_of_another_model_are_neither_resumed_nor_counted(pair: PairInput, tmp_path: Path) -> None:
    other_provenance = PROVENANCE.model_copy(update={"checkpoints": ["x"]})
    with pytest.raises(OtherPredictions, match="checkpoints"):
        find_pending([pair], tmp_path, other_provenance, ["field"])
    record = make_record(pair, OUTCOME, other_provenance, {})
    assert not is_current(pair, record, tmp_path, PROVENANCE, ["field"])
    assert is_current(pair, record, tmp_path, other_provenance, ["field"])


def test_sources_are_paths_with_digests_and_text(pair: PairInput) -> None:
    sources = describe_sources(pair)
    assert sources["fixed"].startswith(f"{pair.fixed} ")
    assert sources["fixed"].split()[1] != sources["moving"].split()[1]
    assert (sources["pair_id"], sources["fixed_modality"], sources["fixed_mask"]) == ("p", "0", "None")


def test_removing_leaves_nothing_of_the_pair(pair: PairInput, tmp_path: Path) -> None:
    (tmp_path / ".partial-abcdefgh-disp_f_m.nii.gz").touch()
    remove_prediction(pair, tmp_path, "itk")
    assert not record_path(tmp_path, "f_m").exists()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["f.nii.gz", "m.nii.gz"]


def test_columns_without_a_value_are_left_out() -> None:
    placements = [PlacementRecord(matrix=[[1.0]], translation=[0.0], stage=stage) for stage in ("rigid", "centre")]
    pair = PredictedPair(
        pair_id="p",
        fixed="f",
        moving="m",
        fixed_transform=placements[0],
        moving_transform=placements[1],
        mean_mm=1.26,
        seconds=2.0,
    )
    head, _, row = format_pairs([pair]).splitlines()
    assert [cell.strip() for cell in head.split("  ") if cell.strip()] == ["pair", "placed by", "mean mm", "seconds"]
    assert [cell.strip() for cell in row.split("  ") if cell.strip()] == ["p", "rigid, centre", "1.3", "2.0"]


def test_failures_are_counted_and_the_first_ones_told() -> None:
    assert format_failures([], 4) == ""
    failed_pairs = [FailedPair(pair_id=f"p{number}", failed=f"reason {number}") for number in range(4)]
    assert format_failures(failed_pairs[:1], 4) == "reason 0"
    sentence = format_failures(failed_pairs, 9)
    assert "4 of 9" in sentence
    assert all(f"p{number}: reason {number}" in sentence for number in range(3))
    assert "reason 3" not in sentence
