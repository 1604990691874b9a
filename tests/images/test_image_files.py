"""Images from and to files, and what is refused in them: headers and numbers as scanners and programs write them."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llmreg.errors import BadImage, MissingFile
from llmreg.geometry.grid import Grid, array_to_image, image_to_array
from llmreg.images.fields import read_field
from llmreg.images.image_files import (
    check_values,
    format_sizes,
    read_header,
    read_image,
    to_scalar_volume,
    write_image,
)


@pytest.fixture
def image(oblique):
    values = np.random.default_rng(0).normal(size=oblique.shape).astype(np.float32)
    return array_to_image(values, oblique)


def test_an_image_round_trips(image, tmp_path):
    write_image(image, tmp_path / "a.nii.gz")
    result = read_image(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(result), sitk.GetArrayFromImage(image))
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]


def test_a_truncated_file_is_refused(image, tmp_path):
    path = tmp_path / "a.nii.gz"
    write_image(image, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BadImage, match="truncated"):
        read_image(path)
    with pytest.raises(BadImage, match="truncated"):
        read_field(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.nrrd", "a.txt"])
@pytest.mark.parametrize(("content", "sentence"), [("not an image", "cannot be read"), ("", "is empty")])
def test_a_file_that_is_no_image_is_refused(name, content, sentence, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(BadImage, match=f"{name} {sentence}"):
        read_image(tmp_path / name)


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(BadImage, match="DICOM"):
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
    with pytest.raises(BadImage, match="sheared"):
        read_image(with_geometry(tmp_path / name, lines))


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_formats_that_may_leave_out_the_direction_are_read(name, tmp_path, caplog):
    assert Grid.from_image(read_image(with_geometry(tmp_path / name, ""))) == Grid((5, 5, 5), (1, 1, 1), (0, 0, 0))
    assert not caplog.records


def test_a_header_apart_from_its_voxels_is_read(image, tmp_path):
    sitk.WriteImage(image, str(tmp_path / "a.hdr"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_image(tmp_path / "a.hdr")), sitk.GetArrayFromImage(image))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MissingFile) as missing:
        read_image(tmp_path / "gone.nii")
    assert missing.value.path == tmp_path / "gone.nii"


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd", "a.mha"])
def test_voxels_are_counted_without_reading_them(name, image, tmp_path):
    write_image(image, tmp_path / name)
    assert sorted(read_header(tmp_path / name).GetSize()[:3]) == [10, 12, 14]


def test_two_files_for_one_image_are_read_and_not_written(image, tmp_path):
    sitk.WriteImage(image, str(tmp_path / "a.mhd"))
    np.testing.assert_array_equal(image_to_array(read_image(tmp_path / "a.mhd")), image_to_array(image))
    with pytest.raises(BadImage, match="only read"):
        write_image(image, tmp_path / "b.mhd")
    assert not (tmp_path / "b.mhd").exists()


def test_a_doubt_is_logged_once_in_a_process(image, tmp_path, caplog):
    path = tmp_path / "open.nii"
    sitk.WriteImage(image, str(path))
    content = bytearray(path.read_bytes())
    content[252:256] = bytes(4)  # qform_code and sform_code
    path.write_bytes(content)
    read_image(path)
    read_image(path)
    assert [str(path) in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha", "a.nrrd"])
def test_axes_of_length_1_are_dropped_and_others_refused(name, image, tmp_path):
    path, join_processes = tmp_path / name, sitk.JoinSeries([image])
    for stored_image in (join_processes, sitk.JoinSeries([join_processes]), sitk.Compose(image)):
        sitk.WriteImage(stored_image, str(path))
        result = read_image(path)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(result), sitk.GetArrayFromImage(image))
        assert Grid.from_image(result).same_as(Grid.from_image(image))
    refused_images = {
        r"single slice \(size 14x12\)": image[:, :, 3],
        "2 volumes of 14x12x10": sitk.JoinSeries([image, image]),
        "3 values": sitk.Compose(image, image, image),
    }
    for sentence, refused_image in refused_images.items():
        sitk.WriteImage(refused_image, str(path))
        with pytest.raises(BadImage, match=sentence):
            read_image(path)


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
        with pytest.raises(BadImage, match=r"a\.nii .* metres or micrometres"):
            read_image(tmp_path / "a.nii")


HU = st.integers(-3024, 3071)


@settings(max_examples=100)
@given(arrays(np.int16, (4, 5, 6), elements=HU))
def test_ct_is_refused_in_unsigned_numbers_only(values):
    negative = values[values < 0]
    assume(negative.size >= 2 and negative.min() < negative.max() and values.max() >= 0)
    check_values(sitk.GetImageFromArray(values), Path("a.nii"))
    check_values(sitk.GetImageFromArray((values + 3024).astype(np.uint16)), Path("a.nii"))
    with pytest.raises(BadImage, match="unsigned type"):
        check_values(sitk.GetImageFromArray(values.astype(np.uint16)), Path("a.nii"))


@settings(max_examples=100)
@given(arrays(np.uint16, (4, 5, 6)), st.integers(2**15, 60000))
def test_values_over_the_whole_range_are_not_refused(values, middle):
    """Whatever else an image holds, a value in the middle says that nothing wrapped around."""
    values[0, 0, :2] = 0, middle
    check_values(sitk.GetImageFromArray(values), Path("a.nii"))
    values[0, 0, 2] = 2**15 - 1
    check_values(sitk.GetImageFromArray((values.astype(np.int32) - 2**15).astype(np.int16)), Path("a.nii"))


def test_values_are_checked(image, tmp_path):
    check_values(image, tmp_path)
    values = sitk.GetArrayFromImage(image)
    with pytest.raises(BadImage, match="empty"):
        check_values(sitk.GetImageFromArray(values * 0), tmp_path)
    values[0, 0, 0] = np.nan
    with pytest.raises(BadImage, match="NaN"):
        check_values(sitk.GetImageFromArray(values), tmp_path)


def test_sizes_are_written_for_messages():
    assert format_sizes((1, 1.5, 2.0)) == "1x1.5x2"


def test_axes_and_components_of_length_1_are_dropped_in_memory(image):
    for source in (image, sitk.JoinSeries([image]), sitk.Compose(image)):
        volume = to_scalar_volume(source, "moving")
        assert (volume.GetDimension(), volume.GetNumberOfComponentsPerPixel()) == (3, 1)
        np.testing.assert_array_equal(image_to_array(volume), image_to_array(image))
    for refused_image in (sitk.JoinSeries([image, image]), sitk.Compose(image, image), image[:, :, 0], image[:3, :, :]):
        with pytest.raises(BadImage) as refusal:
            to_scalar_volume(refused_image, "moving")
        assert refusal.value.path == "moving"


def test_a_padding_or_a_few_bright_voxels_are_no_overflow():
    """Numbers wrap around to several values, of more voxels than a clip or a pacemaker has."""
    values = np.random.default_rng(0).integers(0, 1500, (10, 10, 10)).astype(np.uint16)
    values[:5] = 2**16 - 1000
    check_values(sitk.GetImageFromArray(values), "padding")
    values[:5] = 0
    values[0, 0, :5] = 2**16 - np.arange(1, 6)
    check_values(sitk.GetImageFromArray(values), "clip")
    values[0, :2] = 2**16 - np.arange(1, 21).reshape(2, 10)
    with pytest.raises(BadImage, match="unsigned type"):
        check_values(sitk.GetImageFromArray(values), "wrapped")


@pytest.mark.parametrize(("thickness", "refused"), [(9.0, False), (11.0, True)])
def test_slices_of_a_hundred_times_the_voxels_width_are_refused(thickness, refused):
    image = sitk.Image(300, 300, 8, sitk.sitkUInt8)
    image.SetSpacing((0.1, 0.1, thickness))
    if refused:
        with pytest.raises(BadImage, match="correct the spacing"):
            to_scalar_volume(image, "a")
    else:
        assert to_scalar_volume(image, "a").GetSpacing() == (0.1, 0.1, thickness)
