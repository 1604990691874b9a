"""Every format against SimpleITK, SciPy or the bytes of its files."""

import gzip
import pickle
import struct
import zipfile

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from random_fields import grids, random_field
from scipy.ndimage import map_coordinates
from smooth import smooth_noise

from llmreg.errors import UserError
from llmreg.geometry.field import DisplacementField, warp_image
from llmreg.geometry.formats import FORMATS, format_of, from_learn2reg, read_as, to_learn2reg, write_as
from llmreg.geometry.grid import Grid
from llmreg.geometry.io import array_to_image, image_to_array, write_field, write_image

FILES = [(name, suffix) for name, known in FORMATS.items() for suffix in known.suffixes]
OTHER = Grid((20, 18, 16), (1.2, 1.0, 2.0), (0.0, -10.0, 3.0))


def nifti_header(path):
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix == ".gz" else content


@settings(max_examples=10, deadline=None)
@given(fixed=grids(), moving=grids(), seed=st.integers(0, 1000))
def test_every_format_round_trips(fixed, moving, seed, tmp_path_factory):
    field = random_field(fixed, seed, voxels=3.0)
    folder = tmp_path_factory.mktemp("formats")
    for name, suffix in FILES:
        path = folder / f"{name}{suffix}"
        write_as(field, path, name, moving)
        found = read_as(path, name, fixed, moving)
        assert found.grid.same_as(fixed, 1e-3)
        np.testing.assert_allclose(found.vectors, field.vectors, atol=2e-3)
        assert format_of(path) == name
    assert len(list(folder.iterdir())) == len(FILES)


@settings(max_examples=10, deadline=None)
@given(fixed=grids(), moving=grids(), seed=st.integers(0, 1000))
def test_learn2reg_looks_where_itk_looks(fixed, moving, seed, tmp_path_factory):
    """The challenge's evaluation against sitk.Resample, with images on different grids."""
    # The centres of the images meet, so that something is seen.
    shift = (moving.centre - fixed.centre).astype(np.float32)
    field = DisplacementField(random_field(fixed, seed, voxels=2.0).vectors + shift, fixed)
    folder = tmp_path_factory.mktemp("learn2reg")
    write_as(field, folder / "disp.nii.gz", "learn2reg", moving)
    write_as(field, folder / "disp.npz", "learn2reg", moving)
    write_as(field, folder / "itk.nii.gz", "itk")
    values = smooth_noise(np.random.default_rng(seed), moving.shape, 1.0).astype(np.float32)
    image = array_to_image(values, moving)
    itk = sitk.DisplacementFieldTransform(sitk.ReadImage(str(folder / "itk.nii.gz"), sitk.sitkVectorFloat64))
    reference = array_to_image(np.zeros(fixed.shape, np.uint8), fixed)
    seen_by_itk = image_to_array(sitk.Resample(image, reference, itk, sitk.sitkLinear, 9.0, sitk.sitkFloat64))
    with np.load(folder / "disp.npz") as stored:
        arrays = [stored[key] for key in stored.files]
    content = nifti_header(folder / "disp.nii.gz")
    assert struct.unpack("<8h", content[40:56])[:5] == (4, *fixed.size, 3)
    start = int(struct.unpack("<f", content[108:112])[0])
    # The bytes, so that no reader's axis order comes between: NIfTI stores the first axis fastest.
    arrays.append(np.frombuffer(content, "<f4", offset=start).reshape((*fixed.size, 3), order="F"))
    for array in arrays:
        index = np.moveaxis(array.astype(float), -1, 0) + np.indices(fixed.size)
        warped = map_coordinates(values.T.astype(float), index, order=1)
        inside = np.all([(i > 0.01) & (i < n - 1.01) for i, n in zip(index, moving.size, strict=True)], axis=0)
        assert inside.any()
        np.testing.assert_allclose(warped[inside], seen_by_itk.T[inside], atol=2e-3)


def test_a_written_nifti_is_a_vector_image(oblique, tmp_path):
    field = random_field(oblique, 5, 1.0)
    for name, intent, sign in (("itk", 1007, [1, 1, 1]), ("nifti-ras", 1006, [-1, -1, 1])):
        path = tmp_path / f"{name}.nii.gz"
        write_as(field, path, name)
        content = nifti_header(path)
        assert struct.unpack("<8h", content[40:56])[:6] == (5, *oblique.size, 1, 3)
        assert struct.unpack("<h", content[68:70])[0] == intent
        start = int(struct.unpack("<f", content[108:112])[0])
        values = np.frombuffer(content, "<f4", offset=start).reshape((*oblique.size, 3), order="F")
        np.testing.assert_array_equal(values, field.vectors.transpose(2, 1, 0, 3) * np.float32(sign))
        rows = np.reshape(struct.unpack("<12f", content[280:328]), (3, 4))
        np.testing.assert_allclose(rows, np.diag([-1, -1, 1]) @ oblique.affine[:3], atol=1e-4)
        # ITK turns a displacement vector of NIfTI to LPS by itself, so that both files mean the same to it.
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), field.vectors)


@pytest.mark.parametrize("dimensions", [4, 5])
@pytest.mark.parametrize("intent", [0, 1006, 1007])
def test_fields_of_ras_programs_are_read(oblique, tmp_path, dimensions, intent):
    """As NiBabel writes (X, Y, Z, 3) and (X, Y, Z, 1, 3) with whatever intent its user set."""
    field = random_field(oblique, 6, 2.0)
    write_as(field, tmp_path / "a.nii", "nifti-ras")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    shape = (4, *oblique.size, 3, 1, 1, 1) if dimensions == 4 else (5, *oblique.size, 1, 3, 1, 1)
    content[40:56] = struct.pack("<8h", *shape)
    content[68:70] = struct.pack("<h", intent)
    (tmp_path / "a.nii").write_bytes(content)
    if (dimensions, intent) == (4, 1006):
        # ITK gets such a file wrong without a word.
        with pytest.raises(UserError, match="save it with five dimensions"):
            read_as(tmp_path / "a.nii", "nifti-ras")
        return
    found = read_as(tmp_path / "a.nii", "nifti-ras")
    assert found.grid.same_as(oblique)
    np.testing.assert_allclose(found.vectors, field.vectors, atol=1e-5)


def test_nibabel_and_nitransforms_read_a_ras_field(oblique, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    nonlinear = pytest.importorskip("nitransforms.nonlinear")
    field = random_field(oblique, 7, 2.0)
    write_as(field, tmp_path / "a.nii.gz", "nifti-ras")
    image = nibabel.load(tmp_path / "a.nii.gz")
    assert image.shape == (*oblique.size, 1, 3)
    point = image.affine @ (3, 4, 5, 1)
    expected = oblique.index_to_physical((3, 4, 5)) + field.vectors[5, 4, 3]
    step = image.get_fdata()[3, 4, 5, 0]
    np.testing.assert_allclose((point[:3] + step) * (-1, -1, 1), expected, atol=1e-4)
    dense = nonlinear.DenseFieldTransform(image)
    np.testing.assert_allclose(dense.map(point[None, :3])[0] * (-1, -1, 1), expected, atol=1e-4)


def test_numpy_users_find_documented_keys(oblique, tmp_path):
    field = random_field(oblique, 8, 1.0)
    write_as(field, tmp_path / "a.npz", "npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as stored:
        assert sorted(stored.files) == ["direction", "origin", "size", "spacing", "vectors"]
        index = np.array([3, 4, 5])
        start = np.reshape(stored["direction"], (3, 3)) @ (stored["spacing"] * index) + stored["origin"]
        end = start + stored["vectors"][5, 4, 3]
        assert stored["vectors"].dtype == np.float32
        assert tuple(stored["size"]) == oblique.size
    np.testing.assert_allclose(field.to_transform().TransformPoint(start.tolist()), end, atol=1e-4)


def test_large_fields_are_converted_in_slabs(oblique, monkeypatch):
    field = random_field(oblique, 9, 1.0)
    whole = to_learn2reg(field, OTHER)
    monkeypatch.setattr(Grid.slabs, "__defaults__", (3 * oblique.size[0] * oblique.size[1],))
    assert len(list(oblique.slabs())) == 4
    np.testing.assert_array_equal(to_learn2reg(field, OTHER), whole)
    np.testing.assert_allclose(from_learn2reg(whole, oblique, OTHER).vectors, field.vectors, atol=1e-3)


def test_double_precision_fields_of_other_programs_are_read(oblique, tmp_path):
    field = random_field(oblique, 9, 1.0)
    write_image(field.to_image(sitk.sitkVectorFloat64), tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_as(tmp_path / "a.nii.gz", "itk").vectors, field.vectors)


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


def truncated(path, grid):
    format = "npz" if path.suffix == ".npz" else "itk"
    write_as(random_field(grid, 1, 1.0), path, format)
    path.write_bytes(path.read_bytes()[:-300])


def itk_field(path, grid):
    write_field(random_field(grid, 1, 1.0), path)


def learn2reg_field(path, grid):
    write_as(random_field(grid, 1, 1.0), path, "learn2reg")


def four_dimensional_integers(path, grid):
    write_image(sitk.JoinSeries([sitk.Image(grid.size, sitk.sitkInt16)] * 3), path)


def nan(path, grid):
    field = random_field(grid, 1, 1.0)
    field.vectors[3, 3, 3, 1] = np.nan
    write_as(field, path, "npz" if path.suffix == ".npz" else "itk")


def nan_in_voxels(path, grid):
    np.savez(path, displacements=np.full((*grid.size, 3), np.nan))


def arrays(**content):
    def write(path, grid):
        np.savez(path, **{key: value(grid) if callable(value) else value for key, value in content.items()})

    return write


def pickled(path, grid):
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
    ("itk", "a.nii.gz", scalar, "size 14x12x10 instead of a 3-D field"),
    ("itk", "a.nii.gz", colours, "as colour images do"),
    ("itk", "a.nrrd", two_components, "size 14x12x10x2 instead"),
    ("itk", "a.nii.gz", learn2reg_field, r"size 14x12x10x3 instead.*llmreg_convert_field"),
    ("itk", "a.nii.gz", text, "cannot be read as a displacement field"),
    ("itk", "a.mha", empty, "empty"),
    ("itk", "a.nii.gz", truncated, "truncated"),
    ("itk", "a.nii.gz", nan, "NaN"),
    ("itk", "a.nrrd", nan, "NaN"),
    ("itk", "a.mha", nan, "NaN"),
    ("nifti-ras", "a.nii.gz", scalar, "size 14x12x10, but a field has three components"),
    ("nifti-ras", "a.nii.gz", colours, "whole numbers"),
    ("nifti-ras", "a.nii.gz", four_dimensional_integers, "whole numbers of type int16"),
    ("nifti-ras", "a.nii.gz", nan, "NaN"),
    ("learn2reg", "a.nii.gz", itk_field, r"vector image.*read it as itk"),
    ("learn2reg", "a.nii.gz", scalar, "size 14x12x10, but a Learn2Reg field of this fixed image has 14x12x10x3"),
    ("learn2reg", "a.nii.gz", four_dimensional_integers, "type int16"),
    ("learn2reg", "a.npz", arrays(arr_0=np.zeros((3, 7, 6, 5), np.float16)), "components last, at full resolution"),
    ("learn2reg", "a.npz", arrays(arr_0=np.zeros((3, 4, 5, 3))), "give the fixed image that it was made for"),
    ("learn2reg", "a.npz", arrays(a=np.zeros(3), b=np.zeros(3)), "arrays a, b"),
    ("learn2reg", "a.npz", arrays(arr_0=lambda grid: np.zeros((*grid.size, 3), np.int32)), "type int32"),
    ("learn2reg", "a.npz", nan_in_voxels, "NaN"),
    ("learn2reg", "a.npz", pickled, "Python objects"),
    ("npz", "a.npz", pickled, "Python objects"),
    ("npz", "a.npz", raw_pickle, "Python objects|damaged"),
    ("npz", "a.npz", single_array, "damaged or no .npz"),
    ("npz", "a.npz", other_zip, "damaged or no .npz"),
    ("npz", "a.npz", text, "damaged or no .npz|Python objects"),
    ("npz", "a.npz", empty, "damaged or no .npz"),
    ("npz", "a.npz", truncated, "damaged or no .npz"),
    ("npz", "a.npz", nan, "NaN"),
    ("npz", "a.npz", npz_with(direction=None), "no array 'direction'"),
    ("npz", "a.npz", npz_with(spacing=np.array([1.0, 0.0, 1.0])), "a grid that is none"),
    ("npz", "a.npz", npz_with(spacing=np.array(1.0)), "a grid that is none"),
    ("npz", "a.npz", npz_with(spacing=np.array(["a", "b", "c"])), "a grid that is none"),
    ("npz", "a.npz", npz_with(vectors=np.zeros((3, 4, 5), np.float32)), "size 3x4x5, but its grid needs 10x12x14x3"),
    ("npz", "a.npz", npz_with(vectors=np.zeros((10, 12, 14, 3), np.int64)), "type int64"),
]


@pytest.mark.parametrize(("format", "name", "make", "sentence"), BAD)
def test_a_bad_file_is_refused_in_one_sentence(oblique, tmp_path, format, name, make, sentence):
    make(tmp_path / name, oblique)
    with pytest.raises(UserError, match=sentence) as refusal:
        read_as(tmp_path / name, format, oblique)
    assert str(tmp_path / name) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_names_and_grids_are_asked_for(oblique, tmp_path):
    field = random_field(oblique, 1, 1.0)
    with pytest.raises(UserError, match=r"end it in \.npz"):
        write_as(field, tmp_path / "a.nii.gz", "npz")
    with pytest.raises(UserError, match=r"end it in \.nii\.gz or \.nii"):
        write_as(field, tmp_path / "a.mha", "nifti-ras")
    with pytest.raises(UserError, match="choose from itk, learn2reg, nifti-ras, npz"):
        write_as(field, tmp_path / "a.nii.gz", "ants")
    with pytest.raises(UserError, match="does not exist"):
        read_as(tmp_path / "a.nii.gz", "nifti-ras")
    with pytest.raises(UserError, match="does not exist"):
        format_of(tmp_path / "a.npz")
    learn2reg_field(tmp_path / "a.nii.gz", oblique)
    with pytest.raises(UserError, match="--fixed"):
        read_as(tmp_path / "a.nii.gz", "learn2reg")
    # Four dimensions and a geometry: voxels or millimetres.
    placed = array_to_image(np.zeros(oblique.shape, np.float32), oblique)
    write_image(sitk.JoinSeries([placed] * 3), tmp_path / "b.nii.gz")
    with pytest.raises(UserError, match=r"name its format with --from"):
        format_of(tmp_path / "b.nii.gz")


def test_a_converted_field_warps_as_before(oblique, tmp_path):
    field = random_field(oblique, 11, 1.0)
    image = array_to_image(smooth_noise(np.random.default_rng(0), oblique.shape, 1.0), oblique)
    expected = image_to_array(warp_image(image, field))
    path, previous = tmp_path / "0.nii.gz", "itk"
    write_as(field, path, previous)
    for number, name in enumerate(("learn2reg", "nifti-ras", "npz", "learn2reg", "itk"), start=1):
        found = read_as(path, previous, oblique, OTHER)
        path, previous = tmp_path / f"{number}{FORMATS[name].suffix}", name
        write_as(found, path, name, OTHER)
    np.testing.assert_allclose(image_to_array(warp_image(image, read_as(path, "itk"))), expected, atol=1e-3)
