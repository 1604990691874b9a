"""The record of predictions, against the text of the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmreg.errors import MissingFile, UnreadableFile
from llmreg.predictions import (
    FailedPair,
    PairRecord,
    PredictedPair,
    Predictions,
    Provenance,
    read_predictions,
    read_record,
    record_path,
    write_predictions,
    write_record,
)

PLACE = {
    "matrix": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
    "translation": [0.5, 0.0, -2.0],
    "stage": "template",
    "score": None,
    "uncertainty_mm": 12.5,
}
# A pair as version 0.1.0 wrote it, with all keys that there are, in its order.
PAIR: dict[str, Any] = {
    "pair_id": "A_B",
    "fixed": "A",
    "moving": "B",
    "field": "disp_A_B.nii.gz",
    "inverse": "inverse_A_B.nii.gz",
    "warped": "warped_A_B.nii.gz",
    "labels": "labels_A_B.nii.gz",
    "seen": "seen_A_B.nii.gz",
    "jacobian": "jacobian_A_B.nii.gz",
    "uncertainty": "uncertainty_A_B.nii.gz",
    "transform": "transform_A_B.h5",
    "prealignment": "prealign_A_B.tfm",
    "format": "itk",
    "fixed_path": "/data/A.nii.gz",
    "moving_path": "/data/B.nii.gz",
    "fixed_label": None,
    "moving_label": "/data/B_label.nii.gz",
    "fixed_points": None,
    "moving_points": None,
    "fixed_mask": None,
    "moving_mask": None,
    "initial_transform": None,
    "fixed_transform": PLACE,
    "moving_transform": PLACE | {"stage": "centre"},
    "mean_mm": 2.5,
    "largest_mm": 8.0,
    "folding_percent": 0.0,
    "refined": {"before": 1.5, "after": 0.5},
    "uncertainty_mm": 1.0,
    "seconds": 3.25,
}
ORIGIN: dict[str, Any] = {
    "llmreg_version": "0.1.0",
    "model": "Dataset001_A/llm_morph__default__half",
    "folds": ["0", "1"],
    "epochs": [50, 50],
    "checkpoints": ["0123456789abcdef", "fedcba9876543210"],
    "options": {"refine": 5, "diffeomorphic": False, "uncertainty": True},
    "format": "itk",
    "label_interpolation": "nearest",
}
WHOLE: dict[str, Any] = ORIGIN | {
    "peak_memory_gb": 1.5,
    "peak_gpu_memory_gb": 2.25,
    "pairs": [PAIR],
    "failed": [{"pair_id": "C_D", "fixed": "C", "moving": "D", "failed": "broken"}],
}


def text(content: Any) -> str:
    return json.dumps(content, indent=2) + "\n"


@pytest.mark.parametrize("content", [WHOLE, ORIGIN | {"pairs": [PAIR]}, {"model": "ants", "pairs": []}])
def test_a_file_is_written_again_with_the_same_bytes(tmp_path: Path, content: dict[str, Any]) -> None:
    (tmp_path / "predict.json").write_text(text(content))
    write_predictions(tmp_path / "again", read_predictions(tmp_path))
    assert (tmp_path / "again" / "predict.json").read_text() == text(content)


def test_every_key_is_read(tmp_path: Path) -> None:
    (tmp_path / "predict.json").write_text(text(WHOLE))
    predictions = read_predictions(tmp_path)
    (pair,) = predictions.pairs
    for key in PAIR.keys() - {"fixed_transform", "moving_transform"}:
        assert getattr(pair, key) == PAIR[key]
    assert pair.moving_transform is not None
    assert pair.moving_transform.stage == "centre"
    assert (predictions.folds, predictions.peak_gpu_memory_gb) == (["0", "1"], 2.25)
    assert [(failed.pair_id, failed.failed) for failed in predictions.failed] == [("C_D", "broken")]


def test_files_lie_in_the_folder_or_where_absolute_paths_lead(tmp_path: Path) -> None:
    (tmp_path / "predict.json").write_text(text(WHOLE))
    (pair,) = read_predictions(tmp_path).pairs
    assert pair.path("field") == tmp_path / "disp_A_B.nii.gz"
    assert pair.path("moving_label") == Path("/data/B_label.nii.gz")
    assert pair.path("fixed_label") is None


@pytest.mark.parametrize("key", ["pair", "row"])
def test_records_of_pairs_are_read_under_both_names(tmp_path: Path, key: str) -> None:
    """Methods of other packages had records of rows."""
    path = record_path(tmp_path, "A_B")
    path.parent.mkdir()
    for outcome, kind in ((PAIR, PredictedPair), ({"pair_id": "C", "failed": "broken"}, FailedPair)):
        path.write_text(text(ORIGIN | {"asked": {"fixed": "x"}, key: outcome, "waited": 2.0}))
        record = read_record(tmp_path, "A_B")
        assert record is not None
        assert isinstance(record.pair, kind)
        assert (record.asked, record.waited, record.model) == ({"fixed": "x"}, 2.0, ORIGIN["model"])


def test_a_record_is_written_as_it_always_was(tmp_path: Path) -> None:
    content = {"asked": {"fixed": "x"}, "pair": PredictedPair.model_validate(PAIR), "memory": {"peak_memory_gb": 1.5}}
    write_record(tmp_path, "A_B", PairRecord(**ORIGIN, **content))
    expected = ORIGIN | content | {"pair": PAIR}
    assert record_path(tmp_path, "A_B").read_text() == text(expected)
    assert read_record(tmp_path, "other") is None


def test_another_model_or_use_differs_and_another_version_does_not() -> None:
    provenance = Provenance(**ORIGIN)
    assert provenance.difference(Provenance(**ORIGIN | {"llmreg_version": "9"})) is None
    for key, value in (("folds", ["0"]), ("options", {"refine": 0}), ("format", "npz"), ("checkpoints", [])):
        difference = provenance.difference(Provenance(**ORIGIN | {key: value}))
        assert difference == f"{key} {ORIGIN[key]}"


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (WHOLE | {"pairs": [PAIR, {"fixed": 3}]}, "pairs.1.pair_id"),
        (WHOLE | {"pairs": [PAIR | {"seconds": "long"}]}, "pairs.0.seconds"),
        (ORIGIN, "pairs"),
        ([], "the whole file"),
        (WHOLE | {"format_version": 2}, "format_version"),
        (WHOLE | {"failed": [{"pair_id": "x"}]}, "failed.0.failed"),
    ],
)
def test_wrong_content_is_refused_with_the_path_of_the_key(tmp_path: Path, content: Any, key: str) -> None:
    (tmp_path / "predict.json").write_text(text(content))
    with pytest.raises(UnreadableFile) as refusal:
        read_predictions(tmp_path)
    assert refusal.value.path == tmp_path / "predict.json"
    assert f"({key}: " in refusal.value.problem


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFile) as refusal:
        read_predictions(tmp_path)
    assert refusal.value.path == tmp_path / "predict.json"


def test_keys_of_later_versions_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "predict.json").write_text(text(WHOLE | {"mood": "good", "pairs": [PAIR | {"colour": "red"}]}))
    assert read_predictions(tmp_path) == Predictions.model_validate(WHOLE).model_copy(
        update={"pairs": read_predictions(tmp_path).pairs}
    )
