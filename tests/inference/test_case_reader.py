"""Images in any form, brought into the frame once."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from tiny_model_folder import make_plans, write_model, write_pair

from llmreg.errors import BadArgument, UserError
from llmreg.geometry.grid import Grid, array_to_image
from llmreg.inference.case_reader import CaseReader, ImageInput, is_large
from llmreg.inference.models import load_model


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write_pair(tmp_path)


@pytest.fixture
def sentences() -> list[str]:
    """What the reader warned of."""
    return []


@pytest.fixture
def reader(tmp_path: Path, sentences: list[str]) -> CaseReader:
    plans = make_plans()
    return CaseReader(load_model(write_model(tmp_path / "model", plans)), plans, sentences.append)


def test_files_images_and_arrays_are_read_alike(reader: CaseReader, files: tuple[Path, Path]) -> None:
    image = sitk.ReadImage(str(files[0]))
    array = (sitk.GetArrayFromImage(image), Grid.from_image(image))
    _, expected = reader.read(ImageInput(files[0], 0), "The fixed image")
    for source in (str(files[0]), image, array):
        stored, case = reader.read(ImageInput(source, 0), "The fixed image")
        assert Grid.from_image(stored).same_as(Grid.from_image(image))
        np.testing.assert_array_equal(case.image, expected.image)


def test_a_rewritten_file_is_read_again_and_a_kept_one_stays_as_it_is(
    reader: CaseReader, files: tuple[Path, Path]
) -> None:
    first_image, case = reader.read(ImageInput(files[0], 0), "")
    first_image.SetOrigin((1000.0, 0.0, 0.0))
    second_image, second_case = reader.read(ImageInput(files[0], 0), "")
    assert second_case is case
    assert second_image.GetOrigin() != first_image.GetOrigin()
    shutil.copy(files[1], files[0])
    _, other_case = reader.read(ImageInput(files[0], 0), "")
    assert not np.array_equal(other_case.image, case.image)


def test_a_mask_places_the_image(reader: CaseReader, files: tuple[Path, Path], tmp_path: Path) -> None:
    image = sitk.ReadImage(str(files[0]))
    grid = Grid.from_image(image)
    values = np.zeros(grid.shape, np.uint8)
    values[2:5, 3:6, 4:7] = 1
    sitk.WriteImage(array_to_image(values, grid), str(tmp_path / "mask.nii.gz"))
    for mask in (tmp_path / "mask.nii.gz", array_to_image(values, grid), (values, grid)):
        _, case = reader.read(ImageInput(files[0], 0, mask), "The fixed image")
        middle = grid.index_to_physical(np.array([5.0, 4.0, 3.0]))
        np.testing.assert_allclose(case.transform.translation, middle, atol=1e-6)
    with pytest.raises(UserError, match="The fixed image's mask"):
        reader.read(
            ImageInput(image, 0, array_to_image(values[:-1], Grid.from_image(image[:, :, :-1]))), "The fixed image"
        )


def test_modalities_are_numbers_where_the_model_knows_them(reader: CaseReader, sentences: list[str]) -> None:
    resolved = {
        modality: reader.complete(ImageInput("x", modality), 1).modality
        for modality in (None, 0, "0", "mr", "CT", "PET")
    }
    assert resolved == {None: 1, 0: 0, "0": 0, "mr": 0, "CT": 1, "PET": "PET"}
    assert vars(reader.complete("x", 0)) == vars(ImageInput("x", 0))
    with pytest.raises(UserError, match=r"0 \(MR\), 1 \(CT\)"):
        reader.complete(ImageInput("x", 2), 0)
    assert not sentences


def test_an_unknown_contrast_is_warned_of(reader: CaseReader, files: tuple[Path, Path], sentences: list[str]) -> None:
    reader.read(ImageInput(files[0], "PET"), "The fixed image")
    assert len(sentences) == 1
    assert "'PET'" in sentences[0]


def test_only_images_of_many_voxels_are_large(files: tuple[Path, Path], tmp_path: Path) -> None:
    assert not is_large(files[0])
    sitk.WriteImage(sitk.Image(512, 512, 129, sitk.sitkUInt8), str(tmp_path / "large.nii.gz"))
    assert is_large(tmp_path / "large.nii.gz")
    (tmp_path / "broken.nii.gz").write_bytes(b"broken")
    assert not is_large(tmp_path / "broken.nii.gz")


def test_an_image_says_where_it_lies(files: tuple[Path, Path]) -> None:
    image = sitk.ReadImage(str(files[0]))
    array, grid = sitk.GetArrayFromImage(image), Grid.from_image(image)
    for bad in (array, (array, None), (array.swapaxes(0, 2), grid), [array, grid, grid], 3):
        for argument, arguments in (("image", (bad,)), ("mask", (image, None, bad))):
            with pytest.raises(BadArgument) as refusal:
                ImageInput(*arguments)  # type: ignore[arg-type]
            assert refusal.value.argument == argument
