"""A fold's validation pairs, predicted and scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from tiny_model_folder import make_plans, write_model, write_pair

from llmreg.data.dataset import Dataset, Pair, load_dataset
from llmreg.evaluation.fold_validation import validate_fold
from llmreg.evaluation.pair_scores import evaluate_pair
from llmreg.inference.predictor import Predictor

FIXED, MOVING = "Tiny_0001_0000", "Tiny_0001_0001"
PAIRS = (Pair(FIXED, MOVING),)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A subject with two images; the object is labelled 1, and 2 in its left half."""
    folder = tmp_path_factory.mktemp("raw") / "Dataset007_Tiny"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for path in write_pair(folder / "imagesTr"):
        image = sitk.ReadImage(str(path))
        labels = (sitk.GetArrayFromImage(image) > 0).astype(np.uint8)
        labels[..., : labels.shape[2] // 2] *= 2
        label = sitk.GetImageFromArray(labels)
        label.CopyInformation(image)
        sitk.WriteImage(label, str(folder / "labelsTr" / path.name))
    entries = [{"image": f"imagesTr/{case}.nii.gz", "label": f"labelsTr/{case}.nii.gz"} for case in (FIXED, MOVING)]
    # Label 2 is unknown in the moving image.
    entries[1]["annotated_labels"] = [1]  # type: ignore[assignment]
    content = {"modality": {"0": "MR", "1": "CT"}, "labels": {"right": 1, "left": 2}, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(content | {"pairings": "intra_subject"}))
    return load_dataset(folder)


def test_the_scores_are_those_of_the_prediction(tmp_path: Path, dataset: Dataset) -> None:
    model = write_model(tmp_path, make_plans(), ("0", "1"))
    folder = validate_fold(model, "1", dataset, PAIRS, CPU)
    assert folder == model / "fold_1" / "validation"
    table = pd.read_csv(folder / "metrics.csv")
    assert table[["pair_id", "fixed", "moving", "label"]].values.tolist() == [[f"{FIXED}_{MOVING}", FIXED, MOVING, 1]]
    images, labels = ([dataset.case(case) for case in (FIXED, MOVING)] for _ in range(2))
    registration = Predictor.from_folder(model, ["1"], CPU).predict(*(case.image for case in images))
    fixed, moving = (sitk.ReadImage(str(case.label)) for case in labels)
    (row,) = evaluate_pair(fixed, moving, registration.field, dataset.labels, {1}, registration.prealignment)
    for metric in ("initial_dice", "prealigned_dice", "dice", "hd95_mm", "sdlogj"):
        assert table[metric][0] == pytest.approx(row[metric], abs=1e-6)
    assert json.loads((folder / "summary.json").read_text())["num_pairs"] == 1


def test_a_bidirectional_model_is_scored_both_ways(tmp_path: Path, dataset: Dataset) -> None:
    model = write_model(tmp_path, make_plans(bidirectional=True))
    folder = validate_fold(model, "0", dataset, PAIRS, CPU)
    assert folder is not None
    table = pd.read_csv(folder / "metrics.csv")
    assert table[["fixed", "moving"]].values.tolist() == [[FIXED, MOVING], [MOVING, FIXED]]
    assert table["initial_dice"][0] != table["dice"][0] != table["dice"][1]


def test_without_labelled_pairs_nothing_is_scored(
    tmp_path: Path, dataset: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    model = write_model(tmp_path, make_plans())
    assert validate_fold(model, "0", dataset, (), CPU) is None
    assert "Fold 0" in caplog.text
    assert not (model / "fold_0" / "validation").exists()
