"""Writing with ITK, on disks that are full and not."""

import errno
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from llmreg.geometry.arrays import array_to_image, image_to_array
from llmreg.images.itk import read_with_itk, write_nifti, write_with_itk


@pytest.fixture
def image(oblique):
    return array_to_image(np.random.default_rng(0).normal(size=oblique.shape).astype(np.float32), oblique)


def test_images_and_transforms_are_written(image, tmp_path):
    write_with_itk(image, tmp_path / "a.nrrd")
    np.testing.assert_array_equal(image_to_array(read_with_itk(tmp_path / "a.nrrd")), image_to_array(image))
    shift = sitk.TranslationTransform(3, (1.0, 2.0, 3.0))
    write_with_itk(shift, tmp_path / "a.tfm")
    assert sitk.ReadTransform(str(tmp_path / "a.tfm")).TransformPoint((0.0, 0.0, 0.0)) == (1, 2, 3)


def test_an_image_is_compressed(oblique, tmp_path):
    write_with_itk(array_to_image(np.zeros(oblique.shape, np.float32), oblique), tmp_path / "a.nrrd")
    assert (tmp_path / "a.nrrd").stat().st_size < 1000


def test_itks_errors_are_those_of_a_full_disk_only_where_it_is_full(image, tmp_path, monkeypatch):
    with pytest.raises(RuntimeError):
        write_with_itk(image, tmp_path / "a.unknown")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"a\.unknown") as error:
        write_with_itk(image, tmp_path / "a.unknown")
    assert error.value.errno == errno.ENOSPC


def test_a_nifti_file_that_lacks_bytes_is_noticed(image, tmp_path, monkeypatch):
    """ITK says nothing when the disk fills up while it writes a NIfTI file."""
    write = sitk.WriteImage

    def write_half(volume, name, **options):
        write(volume, name, **options)
        with open(name, "r+b") as stream:
            stream.truncate(600)

    write_nifti(image, tmp_path / "a.nii")
    monkeypatch.setattr(sitk, "WriteImage", write_half)
    with pytest.raises(OSError, match=r"a\.nii") as error:
        write_nifti(image, tmp_path / "a.nii")
    assert error.value.errno == errno.ENOSPC
