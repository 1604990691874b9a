from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from llmreg.dataset import Case, Dataset, load_dataset
from llmreg.errors import UserError
from llmreg.preprocessing.cases import check_case
from llmreg.verification import verify_dataset_integrity

SHARED = Path(os.environ.get("LLMREG_SHARED", Path(__file__).parents[2] / "shared"))
LABELS = {1: "liver", 2: "spleen"}


def save(path: Path, values: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.5, 2.0), shift: float = 0.0) -> None:
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(spacing[: image.GetDimension()])
    image.SetOrigin([shift] * image.GetDimension())
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def noise() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(9, 10, 11)).astype(np.float32)


def structures() -> np.ndarray:
    values = np.zeros((9, 10, 11), np.uint8)
    values[2:5, 2:5, 2:5], values[6:, 6:, 6:] = 1, 2
    return values


@pytest.fixture
def case(tmp_path: Path) -> Case:
    image, label = (tmp_path / f"{kind}/Toy_0001_0000.nii.gz" for kind in ("imagesTr", "labelsTr"))
    save(image, noise())
    save(label, structures())
    return Case("Toy_0001_0000", "0001", 0, image, label)


def label_of(case: Case) -> Path:
    assert case.label is not None
    return case.label


def test_sound_case(case: Case) -> None:
    assert check_case(case, LABELS) == []
    assert check_case(replace(case, label=None), {}) == []


def test_rounded_headers_are_no_difference(case: Case) -> None:
    save(label_of(case), structures(), spacing=(1.0 + 1e-7, 1.5, 2.0), shift=1e-6)
    assert check_case(case, LABELS) == []


def _with(value: float) -> np.ndarray:
    values = noise()
    values[1, 2, 3] = value
    return values


def shorten(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))


BROKEN: dict[str, tuple[Callable[[Case], None], str]] = {
    "missing": (lambda c: c.image.unlink(), "imagesTr.*does not exist"),
    "not an image": (lambda c: c.image.write_bytes(b"no"), "imagesTr"),
    "truncated": (lambda c: c.image.write_bytes(c.image.read_bytes()[:2000]), "imagesTr"),
    "short": (lambda c: shorten(c.image), "imagesTr.*1 bytes"),
    "2-D": (lambda c: save(c.image, noise()[0]), "imagesTr.*3-D"),
    "zero": (lambda c: save(c.image, np.zeros((9, 10, 11), np.float32)), "imagesTr"),
    "NaN": (lambda c: save(c.image, _with(np.nan)), "imagesTr.*NaN"),
    "infinite": (lambda c: save(c.image, _with(np.inf)), "imagesTr.*infinite"),
    "label NaN": (lambda c: save(label_of(c), _with(np.nan)), "labelsTr.*NaN"),
    "label size": (lambda c: save(label_of(c), structures()[1:]), r"labelsTr.*size 11x10x8 instead of 11x10x9"),
    "label spacing": (lambda c: save(label_of(c), structures(), (1, 1, 1)), "labelsTr.*spacing 1x1x1"),
    "label origin": (lambda c: save(label_of(c), structures(), shift=1.0), "labelsTr.*origin"),
    "unknown label": (lambda c: save(label_of(c), structures() * 3), r"labelsTr.*label 3, 6.*'labels'"),
    "fraction": (lambda c: save(label_of(c), structures() * np.float32(0.5)), r"labelsTr.*0\.5.*whole numbers"),
    "no label": (lambda c: label_of(c).unlink(), "labelsTr.*does not exist"),
}


@pytest.mark.parametrize("mistake", BROKEN)
def test_problems_name_the_file(case: Case, mistake: str) -> None:
    spoil, sentence = BROKEN[mistake]
    spoil(case)
    problems = check_case(case, LABELS)
    assert len(problems) == 1
    with pytest.raises(AssertionError, match=sentence):
        raise AssertionError(problems[0])
    assert "\n" not in problems[0]


def test_flipped_label_direction(case: Case) -> None:
    image = sitk.ReadImage(str(label_of(case)))
    image.SetDirection([-1, 0, 0, 0, -1, 0, 0, 0, 1])
    sitk.WriteImage(image, str(label_of(case)))
    assert "direction" in check_case(case, LABELS)[0]


def test_annotated_labels(case: Case) -> None:
    assert check_case(replace(case, annotated_labels=(1, 2)), LABELS) == []
    assert "annotated_labels" in check_case(replace(case, annotated_labels=(1,)), LABELS)[0]


def dataset_of(case: Case, number: int) -> Dataset:
    folder = case.image.parents[1]
    cases = []
    for subject in range(number):
        name = f"Toy_{subject:04d}_0000"
        image, label = (folder / f"{kind}/{name}.nii.gz" for kind in ("imagesTr", "labelsTr"))
        save(image, noise())
        save(label, structures())
        cases.append(Case(name, f"{subject:04d}", 0, image, label))
    return Dataset(9, "Dataset009_Toy", folder, {0: "MR"}, LABELS, 0, 0, "inter_subject", tuple(cases))


@pytest.mark.parametrize("processes", [1, 2])
def test_whole_dataset(case: Case, caplog: pytest.LogCaptureFixture, processes: int) -> None:
    dataset = dataset_of(case, 3)
    verify_dataset_integrity(dataset, processes)
    dataset.cases[2].image.unlink()
    save(label_of(dataset.cases[1]), structures() * 3)
    with pytest.raises(UserError, match=r"Toy_0001_0000.*\(and 1 more, see the log\)\.$"):
        verify_dataset_integrity(dataset, processes)
    assert "Toy_0002_0000" in caplog.text


def test_modality_without_cases(case: Case) -> None:
    with pytest.raises(UserError, match=r"modality 1 \(CT\) has no cases"):
        verify_dataset_integrity(replace(dataset_of(case, 1), modalities={0: "MR", 1: "CT"}), 1)


def test_real_case_of_each_modality() -> None:
    folder = SHARED / "data/Dataset002_BrainMRCT"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    dataset = load_dataset(folder)
    for modality in dataset.modalities:
        assert check_case(dataset.of_modality(modality)[0], dataset.labels) == []
