"""The image formats that ITK reads and writes: NIfTI, NRRD, MetaImage, and others by their content."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import SimpleITK as sitk

from llmreg.images.formats import ImageFormat, register_image_format
from llmreg.images.nifti import NIFTI_ENDINGS, check_storage, describe_doubt, is_complete

# A disk with less free space than this (bytes) counts as full.
LEAST_FREE_SPACE = 2**20


def read_with_itk(path: Path) -> sitk.Image:
    """An image as it is stored. Raises RuntimeError when ITK cannot read it."""
    return sitk.ReadImage(str(path))


def write_with_itk(content: sitk.Image | sitk.Transform, path: Path) -> None:
    """Write an image (compressed) or a transform to a path, which may be temporary.

    Raises:
        OSError: (ENOSPC) the disk is full, which ITK reports without its cause or not at all.
    """
    try:
        if isinstance(content, sitk.Transform):
            sitk.WriteTransform(content, str(path))
        else:
            sitk.WriteImage(content, str(path), useCompression=True)
        is_whole = path.stat().st_size > 0
    except RuntimeError:
        if shutil.disk_usage(path.parent).free > LEAST_FREE_SPACE:
            raise
        is_whole = False
    if not is_whole:
        raise _disk_full(path)


def write_nifti(image: sitk.Image, path: Path) -> None:
    """Write a NIfTI file, compressed if its name ends in ``.gz``. Raises OSError (ENOSPC) when the disk is full."""
    write_with_itk(image, path)
    if not is_complete(path, image):
        raise _disk_full(path)


def _disk_full(path: Path) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


for _image_format in (
    ImageFormat("NIfTI", NIFTI_ENDINGS, read_with_itk, write_nifti, check_storage, describe_doubt),
    ImageFormat("NRRD", (".nrrd",), read_with_itk, write_with_itk, check_storage),
    ImageFormat("MetaImage", (".mha",), read_with_itk, write_with_itk, check_storage),
    # The header and the voxels are two files, which cannot be written as one.
    ImageFormat("MetaImage header", (".mhd",), read_with_itk, None, check_storage),
    ImageFormat("ITK", (), read_with_itk, write_with_itk, check_storage),
):
    register_image_format(_image_format)
