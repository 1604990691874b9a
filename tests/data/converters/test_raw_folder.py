"""What is written below llmreg_raw is a dataset that can be loaded, or nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from llmreg.data.converters.raw_folder import RawImage, check_download, new_dataset_folder, write_raw_dataset
from llmreg.data.dataset import Pair, load_dataset
from llmreg.errors import BadDownload, DatasetExists, UserError

DESCRIPTION = {
    "name": "Toy",
    "modality": {"0": "MR", "1": "CT"},
    "registration_direction": {"fixed": 0, "moving": 1},
    "pairings": "intra_subject",
    "labels": {"1": "liver"},
}


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("llmreg_raw", str(tmp_path / "raw"))
    return tmp_path / "raw"


@pytest.fixture
def images(tmp_path: Path) -> list[RawImage]:
    """Four subjects with both modalities, of which the fixed images have a label map and the moving ones a mask."""
    names = [f"Toy_{subject:04d}_{modality:04d}" for subject in (1, 2, 3, 4) for modality in (0, 1)]
    for name in names:
        voxels = np.full((4, 4, 4), int(name[4:8]), np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / f"{name}.nii.gz"))
    files = {name: tmp_path / f"{name}.nii.gz" for name in names}
    return [
        RawImage(name, files[name], label=files[name])
        if name.endswith("_0000")
        else RawImage(name, files[name], mask=files[name])
        for name in names
    ]


def pair(subject: int) -> Pair:
    return Pair(f"Toy_{subject:04d}_0000", f"Toy_{subject:04d}_0001")


def test_cases_pairs_and_tables_are_those_that_were_given(raw: Path, images: list[RawImage]) -> None:
    folder = new_dataset_folder(4, "Toy")
    write_raw_dataset(folder, images, DESCRIPTION, validation=[pair(3)], test=[pair(4)])
    dataset = load_dataset(folder)
    assert (dataset.registration_val, dataset.registration_test) == ((pair(3),), (pair(4),))
    assert dataset.held_out == {name for p in (pair(3), pair(4)) for name in (p.fixed, p.moving)}
    assert [bool(case.label) for case in dataset.cases] == [True, False] * 4
    assert [bool(case.mask) for case in dataset.cases] == [False, True] * 4
    for image in images:
        assert (folder / image.path).samefile(image.image)
    # The fixed image comes first.
    assert (folder / "test_pairs.csv").read_text().splitlines() == [
        "fixed,moving",
        "imagesTr/Toy_0004_0000.nii.gz,imagesTr/Toy_0004_0001.nii.gz",
    ]


def test_other_images_of_a_held_out_subject_are_left_out(raw: Path, images: list[RawImage]) -> None:
    folder = new_dataset_folder(5, "Toy")
    write_raw_dataset(
        folder, images, DESCRIPTION | {"pairings": "unpaired"}, test=[Pair("Toy_0001_0000", "Toy_0002_0001")]
    )
    assert sorted(path.name[4:13] for path in (folder / "imagesTr").iterdir()) == [
        "0001_0000",
        "0002_0001",
        "0003_0000",
        "0003_0001",
        "0004_0000",
        "0004_0001",
    ]


def test_an_id_is_used_once_and_has_three_digits(raw: Path, images: list[RawImage]) -> None:
    (raw / "Dataset004_Other").mkdir(parents=True)
    with pytest.raises(DatasetExists) as refused:
        new_dataset_folder(4, "Toy")
    assert refused.value.folder.name == "Dataset004_Other"
    with pytest.raises(UserError, match="1000"):
        new_dataset_folder(1000, "Toy")
    with pytest.raises(BadDownload):
        check_download(raw / "nothing")


def test_nothing_is_left_of_a_dataset_that_cannot_be_loaded(raw: Path, images: list[RawImage]) -> None:
    with pytest.raises(UserError):
        write_raw_dataset(raw / "Dataset004_Toy", images, DESCRIPTION | {"labels": {"1": 2.5}})
    assert list(raw.iterdir()) == []
