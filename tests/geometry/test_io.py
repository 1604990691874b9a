import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llmreg.errors import UserError
from llmreg.geometry.grid import Grid
from llmreg.geometry.io import (
    array_to_image,
    check_values,
    lps_to_ras,
    oriented_lps,
    read_field,
    read_image,
    write_image,
)
from llmreg.geometry.storage import storage_problem


@pytest.fixture
def image(oblique):
    values = np.random.default_rng(0).normal(size=oblique.shape).astype(np.float32)
    return array_to_image(values, oblique)


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


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.nrrd", "a.txt"])
@pytest.mark.parametrize(("content", "sentence"), [("not an image", "cannot be read"), ("", "is empty .*copy or")])
def test_a_file_that_is_no_image_is_refused(name, content, sentence, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"{name} {sentence}"):
        read_image(tmp_path / name)


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(UserError, match=r"is a folder.*convert a DICOM series"):
        read_image(tmp_path)


HEADERS = {
    "mha": "ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 5 5 5\nElementType = MET_UCHAR\n{}"
    "ElementDataFile = LOCAL\n",
    "nrrd": "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 5 5 5\nencoding: raw\n{}\n",
}


def with_geometry(path, lines):
    """A file of 5^3 voxels whose header has these lines, in the format that the name says."""
    path.write_bytes(HEADERS[path.suffix[1:]].format(lines).encode() + bytes(range(125)))
    return path


SPACE = "space: left-posterior-superior\nspace directions: "


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("a.mha", "TransformMatrix = 1 0.4 0 0 1 0 0 0 1\n"),
        ("a.mha", "TransformMatrix = 0 0 0 0 0 0 0 0 0\n"),
        ("a.mha", "ElementSpacing = 0 1 1\n"),
        ("a.nrrd", f"{SPACE}(1,0.4,0) (0,1,0) (0,0,1)\n"),
        ("a.nrrd", f"{SPACE}(1,0,0) (1,0,0) (0,0,1)\n"),
        ("a.nrrd", f"{SPACE}(0,0,0) (0,0,0) (0,0,0)\n"),
    ],
)
def test_axes_without_sense_are_named_in_every_format(name, lines, tmp_path):
    with pytest.raises(UserError, match=r"sheared, or its header holds zeros.*: resample it, or correct"):
        read_image(with_geometry(tmp_path / name, lines))


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_formats_that_may_leave_out_the_direction_are_read(name, tmp_path, caplog):
    assert Grid.from_image(read_image(with_geometry(tmp_path / name, ""))) == Grid((5, 5, 5), (1, 1, 1), (0, 0, 0))
    assert not caplog.records


# Voxels along the longest edge, their spacing there and across, mm.
SCANS = {
    "brain": (256, 1.0, 1.0),
    "abdomen": (512, 0.7, 10.0),
    "PET": (400, 4.0, 4.0),
    "rat, MR": (256, 0.1, 1.0),
    "mouse's heart": (128, 0.1, 0.5),
    "mouse, micro-CT": (1000, 0.02, 0.02),
    "specimen, micro-CT": (800, 0.005, 0.005),
}


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize(("unit", "scale"), [("mm", 1), ("micrometres", 1000), ("metres", 0.001)])
def test_a_spacing_in_another_unit_is_refused(scan, unit, scale, tmp_path):
    count, along, across = SCANS[scan]
    image = sitk.Image(count, 4, 4, sitk.sitkUInt8)
    image.SetSpacing([scale * along, scale * across, scale * across])
    sitk.WriteImage(image, str(tmp_path / "a.nii"))
    if unit == "mm":
        assert read_image(tmp_path / "a.nii").GetSize() == (count, 4, 4)
    else:
        with pytest.raises(UserError, match=r"a\.nii has voxels of .* in metres or micrometres: correct the spacing"):
            read_image(tmp_path / "a.nii")


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("form", ["n+2", "ni2"])
@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        ({}, None),
        ({104 + 8: ("d", 0.0)}, "gives the voxel size 0x1x1"),
        ({348: ("i", 1), 400: ("d", np.nan)}, "holds NaN in the position"),
        ({344: ("i", 1), 352: ("d", np.inf)}, "holds NaN in the position"),
        ({16 + 8: ("q", 7)}, "50 bytes are missing"),
    ],
)
def test_nifti_2_is_checked_as_well(order, form, spoil, sentence, tmp_path):
    content = bytearray(540 + 4 + 5**3)
    struct.pack_into(f"{order}i4s", content, 0, 540, form.encode())
    struct.pack_into(f"{order}2h", content, 12, 2, 8)
    struct.pack_into(f"{order}4q", content, 16, 3, 5, 5, 5)
    struct.pack_into(f"{order}4d", content, 104, 1, 1, 1, 1)
    struct.pack_into(f"{order}q", content, 168, 544)
    for at, (kind, value) in spoil.items():
        struct.pack_into(order + kind, content, at, value)
    (tmp_path / "a.nii").write_bytes(content)
    problem = storage_problem(tmp_path / "a.nii")
    if sentence is None or (form == "ni2" and "bytes" in sentence):  # The voxels are in another file.
        assert problem is None
    else:
        assert problem is not None
        assert sentence in problem


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


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha", "a.nrrd"])
def test_axes_of_length_1_are_dropped_and_others_refused(name, image, tmp_path):
    path, join_processes = tmp_path / name, sitk.JoinSeries([image])
    for same in (join_processes, sitk.JoinSeries([join_processes]), sitk.Compose(image)):
        sitk.WriteImage(same, str(path))
        found = read_image(path)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(image))
        assert Grid.from_image(found).same_as(Grid.from_image(image))
    refused = {
        r"is a single slice \(size 14x12\), but images must be 3-D": image[:, :, 3],
        "holds 2 volumes of 14x12x10, but an image is one 3-D volume": sitk.JoinSeries([image, image]),
        "has 3 values per voxel": sitk.Compose(image, image, image),
    }
    for sentence, other in refused.items():
        sitk.WriteImage(other, str(path))
        with pytest.raises(UserError, match=sentence):
            read_image(path)


def test_values_are_checked(image, tmp_path):
    check_values(image, tmp_path)
    values = sitk.GetArrayFromImage(image)
    with pytest.raises(UserError, match="empty"):
        check_values(sitk.GetImageFromArray(values * 0), tmp_path)
    values[0, 0, 0] = np.nan
    with pytest.raises(UserError, match="NaN"):
        check_values(sitk.GetImageFromArray(values), tmp_path)


HU = st.integers(-3024, 3071)


@settings(max_examples=100, deadline=None)
@given(arrays(np.int16, (4, 5, 6), elements=HU))
def test_ct_is_refused_in_unsigned_numbers_only(values):
    negative = values[values < 0]
    assume(negative.size >= 2 and negative.min() < negative.max() and values.max() >= 0)
    check_values(sitk.GetImageFromArray(values), Path("a.nii"))
    check_values(sitk.GetImageFromArray((values + 3024).astype(np.uint16)), Path("a.nii"))
    with pytest.raises(UserError, match="unsigned type: export it again as signed"):
        check_values(sitk.GetImageFromArray(values.astype(np.uint16)), Path("a.nii"))


@settings(max_examples=100, deadline=None)
@given(arrays(np.uint16, (4, 5, 6)), st.integers(2**15, 60000))
def test_values_over_the_whole_range_are_not_refused(values, middle):
    """Whatever else an image holds, a value in the middle says that nothing wrapped around."""
    values[0, 0, :2] = 0, middle
    check_values(sitk.GetImageFromArray(values), Path("a.nii"))
    values[0, 0, 2] = 2**15 - 1
    check_values(sitk.GetImageFromArray((values.astype(np.int32) - 2**15).astype(np.int16)), Path("a.nii"))


def test_turning_to_lps_moves_no_voxel(image):
    turned = oriented_lps(image)
    point = image.TransformIndexToPhysicalPoint((3, 4, 5))
    index = turned.TransformPhysicalPointToIndex(point)
    assert turned[index] == image[3, 4, 5]
    assert np.all(np.diag(np.reshape(turned.GetDirection(), (3, 3))) > 0.5)


def test_lps_and_ras_differ_in_x_and_y():
    np.testing.assert_array_equal(lps_to_ras(np.array([1.0, 2.0, 3.0])), [-1, -2, 3])
