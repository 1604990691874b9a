"""Fields as vector images, by their bytes, by ITK and by NiBabel."""

import gzip
import struct

import numpy as np
import pytest
import SimpleITK as sitk
from random_fields import random_field

from llmreg.errors import UserError
from llmreg.images.fields import read_field, write_field
from llmreg.images.image_files import write_image


def nifti_header(path):
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix == ".gz" else content


def test_a_written_nifti_is_a_vector_image(oblique, tmp_path):
    field = random_field(oblique, 5, 1.0)
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
        np.testing.assert_allclose(rows, np.diag([-1, -1, 1]) @ oblique.affine[:3], atol=1e-4)
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
        with pytest.raises(UserError, match="save it with five dimensions"):
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
    write_image(field.to_image(sitk.sitkVectorFloat64), tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_field(tmp_path / "a.nii.gz", "itk").vectors, field.vectors)
