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
from llmreg.inference.pipeline import OutputOptions
from llmreg.inference.predict_folder import PredictionOptions, predict_folder
from llmreg.inference.predictor import Predictor, RegistrationOptions
from llmreg.predictions import FailedPair, read_predictions, read_record, record_path

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
    changed = source / "Tiny_0002_0001.nii.gz"
    stamp = changed.stat()
    shutil.copy(source / "Tiny_0001_0001.nii.gz", changed)
    os.utime(changed, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
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
    whole, parts = (read_predictions(out / name) for name in ("whole", "parts"))
    for one, other in zip(whole.pairs, parts.pairs, strict=True):
        assert one.to_json() | {"seconds": 0} == other.to_json() | {"seconds": 0}


def test_a_failed_pair_is_recorded_and_tried_again(source: Path, out: Path, model: Model) -> None:
    broken = source / "Tiny_0001_0001.nii.gz"
    content = broken.read_bytes()
    broken.write_bytes(content[:100])
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
    broken.write_bytes(content)
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
