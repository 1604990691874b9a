from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from llmreg.data.case_images import check_case
from llmreg.data.dataset import Case, Dataset, load_dataset
from llmreg.data.verification import verify_dataset_integrity
from llmreg.errors import UserError

SHARED = Path(os.environ.get("LLMREG_SHARED", Path(__file__).parents[2] / "shared"))


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(values), str(path))


def dataset_of(folder: Path, number: int) -> Dataset:
    """People with noise for an image and one structure; what is wrong with single cases is in test_cases.py."""
    cases = []
    for subject in range(number):
        name = f"Toy_{subject:04d}_0000"
        image, label = (folder / f"{kind}/{name}.nii.gz" for kind in ("imagesTr", "labelsTr"))
        save(image, np.random.default_rng(subject).normal(size=(9, 10, 11)).astype(np.float32))
        save(label, np.pad(np.ones((3, 4, 5), np.uint8), 3))
        cases.append(Case(name, f"{subject:04d}", 0, image, label))
    return Dataset(9, "Dataset009_Toy", folder, {0: "MR"}, {1: "liver"}, 0, 0, "inter_subject", tuple(cases))


@pytest.mark.parametrize("processes", [1, 2])
def test_whole_dataset(tmp_path: Path, caplog: pytest.LogCaptureFixture, processes: int) -> None:
    dataset = dataset_of(tmp_path, 3)
    verify_dataset_integrity(dataset, processes)
    label = dataset.cases[1].label
    assert label is not None
    save(label, np.pad(np.full((3, 4, 5), 3, np.uint8), 3))
    dataset.cases[2].image.unlink()
    with pytest.raises(UserError, match=r"Toy_0001_0000.* holds the label 3.*\(and 1 more, see the log\)\.$"):
        verify_dataset_integrity(dataset, processes)
    assert "Toy_0002_0000" in caplog.text


def test_a_single_problem_is_told_as_it_is(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, 2)
    save(dataset.cases[1].image, np.zeros((9, 10, 11), np.float32))
    with pytest.raises(UserError) as raised:
        verify_dataset_integrity(dataset, 1)
    assert [str(raised.value)] == check_case(dataset.cases[1], dataset.labels)


def test_modality_without_cases(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"modality 1 \(CT\) has no cases"):
        verify_dataset_integrity(replace(dataset_of(tmp_path, 1), modalities={0: "MR", 1: "CT"}), 1)


def test_real_case_of_each_modality(caplog: pytest.LogCaptureFixture) -> None:
    folder = SHARED / "data/Dataset002_BrainMRCT"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    dataset = load_dataset(folder)
    caplog.clear()
    for modality in dataset.modalities:
        assert check_case(dataset.of_modality(modality)[0], dataset.labels) == []
    assert not caplog.records
