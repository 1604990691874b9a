import struct

import numpy as np
import pytest
import SimpleITK as sitk

from llmreg.errors import UserError
from llmreg.geometry.io import check_values, image_from, lps_to_ras, oriented_lps, read_field, read_image, write_image


@pytest.fixture
def image(oblique):
    values = np.random.default_rng(0).normal(size=oblique.shape).astype(np.float32)
    return image_from(values, oblique)


def test_an_image_round_trips(image, tmp_path):
    write_image(image, tmp_path / "a.nii.gz")
    found = read_image(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(image))
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]


def test_a_truncated_file_is_refused(image, tmp_path):
    path = tmp_path / "a.nii.gz"
    write_image(image, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="truncated"):
        read_image(path)
    with pytest.raises(UserError, match="truncated"):
        read_field(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.txt"])
def test_a_file_that_is_no_image_is_refused(name, tmp_path):
    (tmp_path / name).write_text("not an image")
    with pytest.raises(UserError, match=name):
        read_image(tmp_path / name)


def test_sheared_axes_are_named(image, tmp_path):
    path = tmp_path / "a.nii"
    write_image(image, path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<hh", content, 252, 0, 1)  # qform_code, sform_code
    struct.pack_into("<12f", content, 280, 1, 0.4, 0, 0, 0, 1.5, 0, 0, 0, 0, 2, 0)
    path.write_bytes(content)
    with pytest.raises(UserError, match="sheared"):
        read_image(path)


def test_a_header_without_sense_is_refused(image, tmp_path):
    path = tmp_path / "a.nii"
    write_image(image, path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<4h", content, 40, 3, 0, -5, 7)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.nii"):
        read_image(path)


def test_a_header_apart_from_its_voxels_is_read(image, tmp_path):
    sitk.WriteImage(image, str(tmp_path / "a.hdr"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_image(tmp_path / "a.hdr")), sitk.GetArrayFromImage(image))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.nii"):
        read_image(tmp_path / "gone.nii")


def test_2d_and_4d_images_are_refused_and_a_singleton_axis_is_dropped(image, tmp_path):
    sitk.WriteImage(image[:, :, 3], str(tmp_path / "2d.nii.gz"))
    sitk.WriteImage(sitk.JoinSeries([image, image]), str(tmp_path / "4d.nii.gz"))
    sitk.WriteImage(sitk.JoinSeries([image]), str(tmp_path / "1.mha"))
    for name in ("2d.nii.gz", "4d.nii.gz"):
        with pytest.raises(UserError, match="3-D"):
            read_image(tmp_path / name)
    assert read_image(tmp_path / "1.mha").GetSize() == image.GetSize()


def test_values_are_checked(image, tmp_path):
    check_values(image, tmp_path)
    values = sitk.GetArrayFromImage(image)
    with pytest.raises(UserError, match="empty"):
        check_values(sitk.GetImageFromArray(values * 0), tmp_path)
    values[0, 0, 0] = np.nan
    with pytest.raises(UserError, match="NaN"):
        check_values(sitk.GetImageFromArray(values), tmp_path)


def test_turning_to_lps_moves_no_voxel(image):
    turned = oriented_lps(image)
    point = image.TransformIndexToPhysicalPoint((3, 4, 5))
    index = turned.TransformPhysicalPointToIndex(point)
    assert turned[index] == image[3, 4, 5]
    assert np.all(np.diag(np.reshape(turned.GetDirection(), (3, 3))) > 0.5)


def test_lps_and_ras_differ_in_x_and_y():
    np.testing.assert_array_equal(lps_to_ras(np.array([1.0, 2.0, 3.0])), [-1, -2, 3])
