"""Files that ITK writes, full disks, and NIfTI headers that ITK reads without a word."""

import errno
import shutil
import struct

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from llmreg.errors import BadImage
from llmreg.geometry.grid import Grid, array_to_image, image_to_array
from llmreg.images.image_files import read_image, write_image
from llmreg.images.itk import check_storage, describe_doubt, is_complete, write_nifti, write_with_itk

SHEARED = np.array([[1, 0.6, 0, 0], [0, 1.5, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1.0]])


@pytest.fixture
def image(oblique):
    values = np.random.default_rng(0).normal(size=oblique.shape).astype(np.float32)
    return array_to_image(values, oblique)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("form", ["n+2", "ni2"])
@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        ({}, None),
        ({104 + 8: ("d", 0.0)}, "voxel size 0x1x1"),
        ({348: ("i", 1), 400: ("d", np.nan)}, "NaN in"),
        ({344: ("i", 1), 352: ("d", np.inf)}, "NaN in"),
        ({16 + 8: ("q", 7)}, "50 bytes"),
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
    if sentence is None or (form == "ni2" and "bytes" in sentence):  # The voxels are in another file.
        check_storage(tmp_path / "a.nii")
    else:
        with pytest.raises(BadImage, match=sentence) as refusal:
            check_storage(tmp_path / "a.nii")
        assert refusal.value.path == tmp_path / "a.nii"


def test_a_header_without_sense_is_refused(image, tmp_path):
    path = tmp_path / "a.nii"
    write_image(image, path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<4h", content, 40, 3, 0, -5, 7)
    path.write_bytes(content)
    with pytest.raises(BadImage, match=r"a\.nii"):
        read_image(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_bytes_that_are_missing_after_writing_are_noticed(name, image, tmp_path):
    path = tmp_path / name
    for volume in (image, sitk.Compose(image, image), sitk.JoinSeries([image] * 3), sitk.Cast(image, sitk.sitkUInt8)):
        sitk.WriteImage(volume, str(path))
        assert is_complete(path, volume)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        assert not is_complete(path, volume)
    path.write_bytes(b"")
    assert not is_complete(path, image)


def test_a_position_that_the_header_leaves_open_is_described(image, tmp_path):
    """Against nibabel, which writes headers without a qform and sform, or with an sform that is sheared."""
    path = tmp_path / "a.nii"
    values = np.zeros(image.GetSize(), np.float32)
    for affine, clause in (
        (np.diag([1.0, 1.5, 3.0, 1.0]), ""),
        (None, "neither qform nor sform"),
        (SHEARED, "sheared"),
    ):
        written = nibabel.Nifti1Image(values, affine)
        if affine is not None:
            written.set_sform(affine, 1)
            written.set_qform(np.diag([1.0, 1.5, 3.0, 1.0]), 1)
        nibabel.save(written, path)
        stored = sitk.ReadImage(str(path))
        doubt = describe_doubt(stored, Grid.from_image(stored))
        assert clause in doubt
        assert bool(doubt) == bool(clause)


def test_images_and_transforms_are_written(image, tmp_path):
    write_with_itk(image, tmp_path / "a.nrrd")
    np.testing.assert_array_equal(image_to_array(sitk.ReadImage(tmp_path / "a.nrrd")), image_to_array(image))
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
