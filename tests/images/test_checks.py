"""What is refused in an image, against headers and numbers as scanners and programs write them."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llmreg.errors import BadImage
from llmreg.geometry.grid import array_to_image, image_to_array
from llmreg.images.checks import check_values, format_sizes, to_scalar_volume
from llmreg.images.image_files import read_image

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
        with pytest.raises(BadImage, match=r"a\.nii has voxels of .* in metres or micrometres: correct the spacing"):
            read_image(tmp_path / "a.nii")


HU = st.integers(-3024, 3071)


@settings(max_examples=100)
@given(arrays(np.int16, (4, 5, 6), elements=HU))
def test_ct_is_refused_in_unsigned_numbers_only(values):
    negative = values[values < 0]
    assume(negative.size >= 2 and negative.min() < negative.max() and values.max() >= 0)
    check_values(sitk.GetImageFromArray(values), Path("a.nii"))
    check_values(sitk.GetImageFromArray((values + 3024).astype(np.uint16)), Path("a.nii"))
    with pytest.raises(BadImage, match="unsigned type: export it again as signed"):
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


@pytest.fixture
def image(oblique):
    values = np.random.default_rng(0).normal(size=oblique.shape).astype(np.float32)
    return array_to_image(values, oblique)


def test_sizes_are_written_for_messages():
    assert format_sizes((1, 1.5, 2.0)) == "1x1.5x2"


def test_axes_and_components_of_length_1_are_dropped_in_memory(image):
    for same in (image, sitk.JoinSeries([image]), sitk.Compose(image)):
        volume = to_scalar_volume(same, "moving")
        assert (volume.GetDimension(), volume.GetNumberOfComponentsPerPixel()) == (3, 1)
        np.testing.assert_array_equal(image_to_array(volume), image_to_array(image))
    for other in (sitk.JoinSeries([image, image]), sitk.Compose(image, image), image[:, :, 0], image[:3, :, :]):
        with pytest.raises(BadImage) as refusal:
            to_scalar_volume(other, "moving")
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
