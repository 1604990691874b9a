"""Files of fields, by their bytes, by ITK, by NiBabel and by NumPy."""

import gzip
import struct

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from random_fields import grids, random_field
from scipy.ndimage import map_coordinates
from smooth import smooth_noise

from llmreg.errors import BadTransform
from llmreg.geometry.field import DisplacementField
from llmreg.geometry.grid import array_to_image, image_to_array
from llmreg.images.fields import read_field, write_field
from llmreg.images.image_files import write_image


def nifti_header(path):
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix == ".gz" else content


def test_a_written_nifti_is_a_vector_image(oblique, tmp_path):
    field = random_field(oblique, 5, 1.0)
    affine = np.column_stack((oblique.matrix, oblique.origin))
    for name, intent, sign in (("itk", 1007, [1, 1, 1]), ("nifti-ras", 1006, [-1, -1, 1])):
        path = tmp_path / f"{name}.nii.gz"
        write_field(field, path, name)
        content = nifti_header(path)
        assert struct.unpack("<8h", content[40:56])[:6] == (5, *oblique.size, 1, 3)
        assert struct.unpack("<h", content[68:70])[0] == intent
        start = int(struct.unpack("<f", content[108:112])[0])
        values = np.frombuffer(content, "<f4", offset=start).reshape((*oblique.size, 3), order="F")
        np.testing.assert_array_equal(values, field.vectors.transpose(2, 1, 0, 3) * np.float32(sign))
        rows = np.reshape(struct.unpack("<12f", content[280:328]), (3, 4))
        np.testing.assert_allclose(rows, np.diag([-1, -1, 1]) @ affine, atol=1e-4)
        # ITK turns a displacement vector of NIfTI to LPS by itself, so that both files mean the same to it.
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), field.vectors)


@pytest.mark.parametrize("dimensions", [4, 5])
@pytest.mark.parametrize("intent", [0, 1006, 1007])
def test_fields_of_ras_programs_are_read(oblique, tmp_path, dimensions, intent):
    """As NiBabel writes (X, Y, Z, 3) and (X, Y, Z, 1, 3) with whatever intent its user set."""
    field = random_field(oblique, 6, 2.0)
    write_field(field, tmp_path / "a.nii", "nifti-ras")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    shape = (4, *oblique.size, 3, 1, 1, 1) if dimensions == 4 else (5, *oblique.size, 1, 3, 1, 1)
    content[40:56] = struct.pack("<8h", *shape)
    content[68:70] = struct.pack("<h", intent)
    (tmp_path / "a.nii").write_bytes(content)
    if (dimensions, intent) == (4, 1006):
        # ITK gets such a file wrong without a word.
        with pytest.raises(BadTransform, match="five dimensions"):
            read_field(tmp_path / "a.nii", "nifti-ras")
        return
    result = read_field(tmp_path / "a.nii", "nifti-ras")
    assert result.grid.same_as(oblique)
    np.testing.assert_allclose(result.vectors, field.vectors, atol=1e-5)


def test_nibabel_and_nitransforms_read_a_ras_field(oblique, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    nonlinear = pytest.importorskip("nitransforms.nonlinear")
    field = random_field(oblique, 7, 2.0)
    write_field(field, tmp_path / "a.nii.gz", "nifti-ras")
    image = nibabel.load(tmp_path / "a.nii.gz")
    assert image.shape == (*oblique.size, 1, 3)
    point = image.affine @ (3, 4, 5, 1)
    expected = oblique.index_to_physical((3, 4, 5)) + field.vectors[5, 4, 3]
    step = image.get_fdata()[3, 4, 5, 0]
    np.testing.assert_allclose((point[:3] + step) * (-1, -1, 1), expected, atol=1e-4)
    dense = nonlinear.DenseFieldTransform(image)
    np.testing.assert_allclose(dense.map(point[None, :3])[0] * (-1, -1, 1), expected, atol=1e-4)


def test_double_precision_fields_of_other_programs_are_read(oblique, tmp_path):
    field = random_field(oblique, 9, 1.0)
    write_image(sitk.Cast(field.to_image(), sitk.sitkVectorFloat64), tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_field(tmp_path / "a.nii.gz", "itk").vectors, field.vectors)


@settings(max_examples=10)
@given(fixed=grids(), moving=grids(), seed=st.integers(0, 1000))
def test_learn2reg_looks_where_itk_looks(fixed, moving, seed, tmp_path_factory):
    """The challenge's evaluation against sitk.Resample, with images on different grids."""
    # The centres of the images meet, so that something is seen.
    shift = (moving.centre - fixed.centre).astype(np.float32)
    field = DisplacementField(random_field(fixed, seed, voxels=2.0).vectors + shift, fixed)
    folder = tmp_path_factory.mktemp("learn2reg")
    write_field(field, folder / "disp.nii.gz", "learn2reg", moving)
    write_field(field, folder / "disp.npz", "learn2reg", moving)
    write_field(field, folder / "itk.nii.gz", "itk")
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


def test_numpy_users_find_documented_keys(oblique, tmp_path):
    field = random_field(oblique, 8, 1.0)
    write_field(field, tmp_path / "a.npz", "npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as stored:
        assert sorted(stored.files) == ["direction", "origin", "size", "spacing", "vectors"]
        index = np.array([3, 4, 5])
        start = np.reshape(stored["direction"], (3, 3)) @ (stored["spacing"] * index) + stored["origin"]
        end = start + stored["vectors"][5, 4, 3]
        assert stored["vectors"].dtype == np.float32
        assert tuple(stored["size"]) == oblique.size
    np.testing.assert_allclose(field.to_transform().TransformPoint(start.tolist()), end, atol=1e-4)
