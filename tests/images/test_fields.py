"""Displacement fields in files of every format."""

import pickle
import zipfile

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from random_fields import grids, random_field
from smooth import smooth_noise

from llmreg.errors import BadArgument, BadTransform, MissingFile, UnclearField, UnknownName, UserError, WouldOverwrite
from llmreg.geometry.grid import Grid, array_to_image, image_to_array
from llmreg.geometry.resampling import resample_image
from llmreg.images.fields import (
    convert_fields,
    detect_field_format,
    read_field,
    read_linear_transform,
    read_transform,
    write_field,
)
from llmreg.images.formats import FIELD_FORMATS
from llmreg.images.image_files import write_image

FILES = [(name, ending) for name, field_format in FIELD_FORMATS.parts.items() for ending in field_format.endings]


OTHER = Grid((20, 18, 16), (1.2, 1.0, 2.0), (0.0, -10.0, 3.0))


@settings(max_examples=10)
@given(fixed=grids(), moving=grids(), seed=st.integers(0, 1000))
def test_every_format_round_trips(fixed, moving, seed, tmp_path_factory):
    field = random_field(fixed, seed, voxels=3.0)
    folder = tmp_path_factory.mktemp("formats")
    for name, ending in FILES:
        path = folder / f"{name}{ending}"
        write_field(field, path, name, moving)
        result = read_field(path, name, fixed, moving)
        assert result.grid.same_as(fixed, 1e-3)
        np.testing.assert_allclose(result.vectors, field.vectors, atol=2e-3)
        assert detect_field_format(path) == name
    assert len(list(folder.iterdir())) == len(FILES)


def scalar(path, grid):
    write_image(array_to_image(np.zeros(grid.shape, np.float32), grid), path)


def colours(path, grid):
    write_image(sitk.GetImageFromArray(np.zeros((*grid.shape, 3), np.uint8), isVector=True), path)


def two_components(path, grid):
    write_image(sitk.GetImageFromArray(np.zeros((*grid.shape, 2), np.float32), isVector=True), path)


def text(path, grid):
    path.write_text("1 2 3")


def empty(path, grid):
    path.write_bytes(b"")


def truncated_field(path, grid):
    format = "npz" if path.suffix == ".npz" else "itk"
    write_field(random_field(grid, 1, 1.0), path, format)
    path.write_bytes(path.read_bytes()[:-300])


def itk_field(path, grid):
    write_field(random_field(grid, 1, 1.0), path)


def learn2reg_field(path, grid):
    write_field(random_field(grid, 1, 1.0), path, "learn2reg")


def four_dimensional_integers(path, grid):
    write_image(sitk.JoinSeries([sitk.Image(grid.size, sitk.sitkInt16)] * 3), path)


def nan(path, grid):
    field = random_field(grid, 1, 1.0)
    field.vectors[3, 3, 3, 1] = np.nan
    write_field(field, path, "npz" if path.suffix == ".npz" else "itk")


def nan_in_voxels(path, grid):
    np.savez(path, displacements=np.full((*grid.size, 3), np.nan))


def arrays(**content):
    def write(path, grid):
        np.savez(path, **{key: value(grid) if callable(value) else value for key, value in content.items()})

    return write


def pickled_array(path, grid):
    np.savez(path, vectors=np.array([{"a": 1}], dtype=object))


def raw_pickle(path, grid):
    path.write_bytes(pickle.dumps([1, 2, 3]))


def single_array(path, grid):
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))


def other_zip(path, grid):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("vectors.npy", b"nothing")


def whole(grid):
    return {key: np.array(value) for key, value in grid.to_dict().items()}


def npz_with(**changes):
    def write(path, grid):
        content = {"vectors": np.zeros((*grid.shape, 3), np.float32)} | whole(grid) | changes
        np.savez(path, **{key: value for key, value in content.items() if value is not None})

    return write


BAD = [
    ("itk", "a.nii.gz", scalar, "size 14x12x10 instead"),
    ("itk", "a.nii.gz", colours, "as colour images do"),
    ("itk", "a.nrrd", two_components, "size 14x12x10x2 instead"),
    ("itk", "a.nii.gz", learn2reg_field, "size 14x12x10x3 instead.*: convert it"),
    ("itk", "a.nii.gz", text, "cannot be read"),
    ("itk", "a.mha", empty, "empty"),
    ("itk", "a.nii.gz", truncated_field, "truncated"),
    ("itk", "a.nii.gz", nan, "NaN"),
    ("itk", "a.nrrd", nan, "NaN"),
    ("itk", "a.mha", nan, "NaN"),
    ("nifti-ras", "a.nii.gz", scalar, "size 14x12x10, .*three components"),
    ("nifti-ras", "a.nii.gz", colours, "whole numbers"),
    ("nifti-ras", "a.nii.gz", four_dimensional_integers, "whole numbers of type int16"),
    ("nifti-ras", "a.nii.gz", nan, "NaN"),
    ("learn2reg", "a.nii.gz", itk_field, r"vector image.*read it as itk"),
    ("learn2reg", "a.nii.gz", scalar, "size 14x12x10, .* 14x12x10x3"),
    ("learn2reg", "a.nii.gz", four_dimensional_integers, "type int16"),
    ("learn2reg", "a.npz", arrays(arr_0=np.zeros((3, 7, 6, 5), np.float16)), "components last"),
    ("learn2reg", "a.npz", arrays(arr_0=np.zeros((3, 4, 5, 3))), "the fixed image"),
    ("learn2reg", "a.npz", arrays(a=np.zeros(3), b=np.zeros(3)), "arrays a, b"),
    ("learn2reg", "a.npz", arrays(arr_0=lambda grid: np.zeros((*grid.size, 3), np.int32)), "type int32"),
    ("learn2reg", "a.npz", nan_in_voxels, "NaN"),
    ("learn2reg", "a.npz", pickled_array, "Python objects"),
    ("npz", "a.npz", pickled_array, "Python objects"),
    ("npz", "a.npz", raw_pickle, "Python objects|damaged"),
    ("npz", "a.npz", single_array, "damaged or no .npz"),
    ("npz", "a.npz", other_zip, "damaged or no .npz"),
    ("npz", "a.npz", text, "damaged or no .npz|Python objects"),
    ("npz", "a.npz", empty, "damaged or no .npz"),
    ("npz", "a.npz", truncated_field, "damaged or no .npz"),
    ("npz", "a.npz", nan, "NaN"),
    ("npz", "a.npz", npz_with(direction=None), "no array 'direction'"),
    ("npz", "a.npz", npz_with(spacing=np.array([1.0, 0.0, 1.0])), "no valid grid"),
    ("npz", "a.npz", npz_with(spacing=np.array(1.0)), "no valid grid"),
    ("npz", "a.npz", npz_with(spacing=np.array(["a", "b", "c"])), "no valid grid"),
    ("npz", "a.npz", npz_with(vectors=np.zeros((3, 4, 5), np.float32)), "size 3x4x5, .* 10x12x14x3"),
    ("npz", "a.npz", npz_with(vectors=np.zeros((10, 12, 14, 3), np.int64)), "type int64"),
]


@pytest.mark.parametrize(("format", "name", "make", "sentence"), BAD)
def test_a_bad_file_is_refused_in_one_sentence(oblique, tmp_path, format, name, make, sentence):
    make(tmp_path / name, oblique)
    with pytest.raises(UserError, match=sentence) as refusal:
        read_field(tmp_path / name, format, oblique)
    assert str(tmp_path / name) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_names_and_grids_are_asked_for(oblique, tmp_path):
    field = random_field(oblique, 1, 1.0)
    with pytest.raises(BadTransform, match=r"end it in \.npz"):
        write_field(field, tmp_path / "a.nii.gz", "npz")
    with pytest.raises(BadTransform, match=r"end it in \.nii\.gz or \.nii"):
        write_field(field, tmp_path / "a.mha", "nifti-ras")
    with pytest.raises(UnknownName) as unknown:
        write_field(field, tmp_path / "a.nii.gz", "ants")
    assert set(unknown.value.known) == {"itk", "learn2reg", "nifti-ras", "npz"}
    with pytest.raises(MissingFile):
        read_field(tmp_path / "a.nii.gz", "nifti-ras")
    with pytest.raises(MissingFile):
        detect_field_format(tmp_path / "a.npz")
    learn2reg_field(tmp_path / "a.nii.gz", oblique)
    with pytest.raises(BadArgument) as argument:
        read_field(tmp_path / "a.nii.gz", "learn2reg")
    assert argument.value.argument == "fixed"
    # Four dimensions and a geometry: voxels or millimetres.
    placed = array_to_image(np.zeros(oblique.shape, np.float32), oblique)
    write_image(sitk.JoinSeries([placed] * 3), tmp_path / "b.nii.gz")
    with pytest.raises(UnclearField) as unclear:
        detect_field_format(tmp_path / "b.nii.gz")
    assert unclear.value.path == tmp_path / "b.nii.gz"


def test_a_converted_field_warps_as_before(oblique, tmp_path):
    field = random_field(oblique, 11, 1.0)
    image = array_to_image(smooth_noise(np.random.default_rng(0), oblique.shape, 1.0), oblique)
    expected = image_to_array(resample_image(image, oblique, field))
    path, previous = tmp_path / "0.nii.gz", "itk"
    write_field(field, path, previous)
    for number, name in enumerate(("learn2reg", "nifti-ras", "npz", "learn2reg", "itk"), start=1):
        result = read_field(path, previous, oblique, OTHER)
        path, previous = tmp_path / f"{number}{FIELD_FORMATS.get(name).endings[0]}", name
        write_field(result, path, name, OTHER)
    np.testing.assert_allclose(
        image_to_array(resample_image(image, oblique, read_field(path, "itk"))), expected, atol=1e-3
    )


def test_files_are_converted_into_a_folder_with_both_grids(oblique, tmp_path):
    """The steps of a Learn2Reg field end in voxels of the moving image, not of the fixed one."""
    field = random_field(oblique, 12, 1.0)
    fixed, moving = tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz"
    for path, grid in ((fixed, oblique), (moving, OTHER)):
        write_image(array_to_image(np.zeros(grid.shape, np.uint8), grid), path)
    for name in ("a.nrrd", "b.npz"):
        write_field(field, tmp_path / name, "npz" if name == "b.npz" else "itk")
    paths = [tmp_path / "a.nrrd", tmp_path / "b.npz"]
    written = convert_fields(paths, tmp_path / "out", None, "learn2reg", fixed, moving)
    assert written == [tmp_path / "out" / "a.nii.gz", tmp_path / "out" / "b.nii.gz"]
    for path in written:
        np.testing.assert_allclose(read_field(path, "learn2reg", oblique, OTHER).vectors, field.vectors, atol=2e-3)
    (itk,) = convert_fields(written[:1], tmp_path / "c.mha", "learn2reg", "itk", fixed, moving)
    np.testing.assert_allclose(read_field(itk).vectors, field.vectors, atol=2e-3)
    with pytest.raises(WouldOverwrite):
        convert_fields(paths[:1], itk, None, "itk")
    convert_fields(paths[:1], itk, None, "itk", overwrite=True)
    np.testing.assert_array_equal(read_field(itk).vectors, field.vectors)


@pytest.mark.parametrize(
    ("names", "output", "argument"),
    [
        (["a.mha", "b.mha"], "c.mha", "output"),
        (["a.mha", "a.mha"], "out", "paths"),
        (["a.mha", "a.nrrd"], "out", "output"),
    ],
)
def test_fields_that_cannot_all_be_written_are_refused_at_once(oblique, tmp_path, names, output, argument):
    for name in names:
        write_field(random_field(oblique, 1, 1.0), tmp_path / name)
    with pytest.raises(BadArgument) as refusal:
        convert_fields([tmp_path / name for name in names], tmp_path / output, None, "npz")
    assert refusal.value.argument == argument
    assert not (tmp_path / output).exists()


@pytest.mark.parametrize("ending", [".tfm", ".txt", ".h5", ".mat"])
def test_a_transform_maps_points_as_before(ending, tmp_path):
    path = tmp_path / f"a{ending}"
    transform = sitk.Euler3DTransform((5.0, 3.0, -4.0), 0.1, -0.05, 0.2, (0.5, -0.5, 0.3))
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(transform.GetMatrix())
    affine.SetTranslation((1.0, 2.0, 3.0))
    sitk.WriteTransform(affine, str(path))
    point = (7.0, -8.0, 9.0)
    for read in (read_transform, read_linear_transform):
        assert read(path).TransformPoint(point) == pytest.approx(affine.TransformPoint(point))


def test_what_is_no_transform_is_named(tmp_path):
    with pytest.raises(MissingFile):
        read_transform(tmp_path / "gone.tfm")
    (tmp_path / "text.tfm").write_text("no transform")
    sitk.WriteTransform(sitk.Euler2DTransform(), str(tmp_path / "flat.tfm"))
    for name in ("text.tfm", "flat.tfm"):
        with pytest.raises(BadTransform) as refusal:
            read_transform(tmp_path / name)
        assert refusal.value.path == tmp_path / name


def test_a_transform_that_bends_is_not_linear(tmp_path):
    sitk.WriteTransform(sitk.BSplineTransform(3, 3), str(tmp_path / "a.tfm"))
    assert not read_transform(tmp_path / "a.tfm").IsLinear()
    with pytest.raises(BadTransform, match="linear"):
        read_linear_transform(tmp_path / "a.tfm")
