from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from llmreg.data.dataset import load_dataset, pairs_among
from llmreg.data.synthetic import random_displacement, render, write_demo_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_dataset(tmp_path_factory.mktemp("raw"), subjects=2, seed=3, held_out=2)


def _case(folder: Path, part: str, number: int, modality: int) -> tuple[sitk.Image, sitk.Image]:
    name = f"Demo_{number:04d}_{modality:04d}.nii.gz"
    return sitk.ReadImage(folder / f"images{part}" / name), sitk.ReadImage(folder / f"labels{part}" / name)


def _centroids(labels: sitk.Image) -> np.ndarray:
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.Execute(labels)
    return np.array([statistics.GetCentroid(label) for label in statistics.GetLabels()])


def test_reads_as_a_dataset_without_the_held_out_subjects(folder):
    dataset = load_dataset(folder)
    assert dataset.name == "Dataset999_Demo"
    assert {case.subject for case in dataset.cases} == {"0001", "0002"}
    assert len(dataset.labels) == 6
    assert [(p.fixed, p.moving) for p in pairs_among(dataset, [c.name for c in dataset.cases])] == [
        ("Demo_0001_0000", "Demo_0002_0001"),
        ("Demo_0002_0000", "Demo_0001_0001"),
    ]
    assert len(list((folder / "imagesTs").glob("*.nii.gz"))) == len(list((folder / "labelsTs").iterdir())) == 4


def test_held_out_people_are_paired_with_each_other(folder):
    assert (folder / "imagesTs" / "pairs.csv").read_text().split() == [
        "fixed,moving",
        "Demo_0003_0000.nii.gz,Demo_0004_0001.nii.gz",
        "Demo_0004_0000.nii.gz,Demo_0003_0001.nii.gz",
    ]


def test_labels_lie_on_their_images_and_every_organ_is_there(folder):
    for part, number in (("Tr", 1), ("Tr", 2), ("Ts", 3)):
        for modality in (0, 1):
            image, labels = _case(folder, part, number, modality)
            assert image.GetSize() == labels.GetSize()
            np.testing.assert_allclose(image.GetOrigin(), labels.GetOrigin(), atol=1e-5)
            np.testing.assert_allclose(image.GetDirection(), labels.GetDirection(), atol=1e-5)
            assert set(np.unique(sitk.GetArrayFromImage(labels))) == set(range(7))


def test_the_two_scanners_differ_but_show_one_anatomy(folder):
    (mr, mr_labels), (ct, ct_labels) = _case(folder, "Tr", 1, 0), _case(folder, "Tr", 1, 1)
    assert mr.GetSpacing() != ct.GetSpacing()
    assert np.asarray(mr.GetDirection())[0] == -np.asarray(ct.GetDirection())[0]
    first, second = _centroids(mr_labels), _centroids(ct_labels)
    # The poses differ, so compare the arrangement: distances between organs.
    distances = [np.linalg.norm(c[:, None] - c[None], axis=-1) for c in (first, second)]
    np.testing.assert_allclose(*distances, atol=1.5)
    # The liver lies on the right: smaller x in LPS than the spleen.
    assert first[0, 0] < first[2, 0]
    assert second[0, 0] < second[2, 0]


def test_ct_is_in_hounsfield_units_and_mr_is_not_negative(folder):
    mr, ct = (sitk.GetArrayFromImage(_case(folder, "Tr", 1, modality)[0]) for modality in (0, 1))
    assert mr.min() >= 0
    assert np.percentile(ct, 3) == pytest.approx(-1000, abs=40)
    _, labels = _case(folder, "Tr", 1, 1)
    assert np.median(ct[sitk.GetArrayFromImage(labels) == 1]) == pytest.approx(105, abs=12)


def test_people_differ_by_a_smooth_displacement_that_does_not_fold():
    person = random_displacement(np.random.default_rng(0))
    assert 3 < person.std() < 7
    gradient = np.stack([np.stack(np.gradient(component, 8.0)[::-1]) for component in person])
    determinant = np.linalg.det(np.moveaxis(gradient, (0, 1), (-2, -1)) + np.eye(3))
    assert (determinant > 0).mean() > 0.999


def test_the_same_seed_gives_the_same_voxels():
    once, again = (
        render(random_displacement(generator), 1, generator)[0]
        for generator in (np.random.default_rng(7), np.random.default_rng(7))
    )
    np.testing.assert_array_equal(once, again)
