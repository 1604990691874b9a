"""The image formats that ITK reads and writes, and what it does not report about NIfTI files.

Reference: nifti_convert_nhdr2nim and nifti_read_buffer in nifti1_io.c.
"""

import errno
import gzip
import math
import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

from llmreg.errors import BadImage
from llmreg.geometry.grid import Grid, ras_to_lps
from llmreg.images.formats import ImageFormat, register_image_format

NIFTI_ENDINGS = (".nii.gz", ".nii")
# nifti1.h: the intent of displacement vectors, which NIfTI has in RAS. ITK (5.3 and later) turns them to LPS.
DISPLACEMENT_VECTOR = 1006


def is_complete(path: Path, image: sitk.Image) -> bool:
    """Whether the NIfTI file to which an image was just written has all of its bytes."""
    values = image.GetNumberOfPixels() * image.GetNumberOfComponentsPerPixel()
    # In the NIfTI-1 files that ITK writes, 352 bytes stand before the voxels.
    expected = 352 + values * image.GetSizeOfPixelComponent()
    if path.suffix != ".gz":
        return bool(path.stat().st_size >= expected)
    # A gzip file ends with the length of its content, modulo 2^32.
    return bool(int.from_bytes(path.read_bytes()[-4:], "little") == expected % 2**32)


def check_storage(path: Path) -> None:
    """Check a file for damage that ITK passes over; in files of other formats, only their gzip compression.

    ITK's NIfTI reader turns NaN into 0, missing bytes into zeros, a voxel size of 0 into 1 mm and a negative one into a
    mirrored image.

    Raises:
        BadImage: the file is empty, truncated, or holds values that ITK would change.
    """
    copy_again = "copy or download it again"
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise BadImage(path, "is truncated or damaged", copy_again) from error
    if not content:
        raise BadImage(path, "is empty (0 bytes)", copy_again)
    header = _parse_header(content)
    if header is None:
        return
    shape = header["dim"][1 : 1 + max(0, min(7, int(header["dim"][0])))]
    spacing = header["pixdim"][1:4]
    if any(n > 1 and not 0 < s < math.inf for n, s in zip(shape, spacing, strict=False)):
        sizes = "x".join(f"{s:g}" for s in spacing)
        raise BadImage(
            path, f"gives the voxel size {sizes} in its header", "write three positive lengths in mm (pixdim)"
        )
    if not np.isfinite(_read_position(header)).all():
        raise BadImage(path, "holds NaN in the position or direction of its header", "write its geometry anew")
    offset = float(header["vox_offset"])
    if bytes(header["magic"])[:2] == b"ni" or not math.isfinite(offset):
        return  # The voxels are in another file, or ITK refuses the header.
    count = int(np.prod(np.maximum(shape, 1)))
    missing = int(offset) + count * int(header["bitpix"]) // 8 - len(content)
    if missing > 0:
        raise BadImage(path, f"is truncated ({missing} bytes are missing)", copy_again)
    number_type = {16: "f4", 64: "f8"}.get(int(header["datatype"]))
    if (
        number_type
        and not np.isfinite(np.frombuffer(content, header.endianness + number_type, count, int(offset))).all()
    ):
        raise BadImage(path, "holds NaN or infinite values", "replace them by numbers")


def _parse_header(content: bytes) -> Nifti1Header | None:
    """The header of a NIfTI-1 or NIfTI-2 file (also of a pair of files), or None when the content is none."""
    for header_type in (Nifti1Header, Nifti2Header):
        if header_type.may_contain_header(content):  # type: ignore[no-untyped-call]
            return header_type(content[: header_type.sizeof_hdr], check=False)  # type: ignore[no-untyped-call]
    return None


def _read_position(header: Nifti1Header) -> list[float]:
    """The numbers that place the image: the sform where it is set, else the qform, else nothing."""
    if header["sform_code"] > 0:
        return [value for axis in "xyz" for value in header[f"srow_{axis}"]]
    names = [f"quatern_{axis}" for axis in "bcd"] + [f"qoffset_{axis}" for axis in "xyz"]
    return [float(header[name]) for name in names] if header["qform_code"] > 0 else []


def describe_doubt(image: sitk.Image, grid: Grid) -> str:
    """What the header leaves open about the position, and what is assumed; empty when nothing is.

    Args:
        image: as ITK read it, with its metadata.
        grid: where ITK places it.
    """
    has_qform, has_sform = (int(image.GetMetaData(f"{form}_code")) > 0 for form in ("qform", "sform"))
    if not has_qform and not has_sform:
        return (
            "does not say how it lies in the body (neither qform nor sform is set), so its axes are taken to run to "
            "the left, the back and the head: write its direction into the header if they do not."
        )
    if not has_sform:
        return ""
    # ITK takes the voxel size from pixdim, and uses the qform where the sform is sheared.
    unit = {1: 1000.0, 3: 0.001}.get(int(image.GetMetaData("xyzt_units")) & 7, 1.0)
    stated = unit * np.array([image.GetMetaData(f"srow_{axis}").split() for axis in "xyz"], dtype=float)
    distance = np.abs(ras_to_lps(stated.T).T - np.column_stack((grid.matrix, grid.origin))) @ [*grid.size, 1]
    if distance.max() <= max(grid.spacing):
        return ""
    return (
        f"is not placed as its sform says (sheared, or at odds with pixdim; up to {distance.max():.3g} mm apart): "
        "write its geometry anew if other programs show it elsewhere."
    )


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
    except RuntimeError as error:
        # A disk with less than a MiB of free space counts as full.
        if shutil.disk_usage(path.parent).free > 2**20:
            raise
        raise _disk_full(path) from error
    if path.stat().st_size == 0:
        raise _disk_full(path)


def write_nifti(image: sitk.Image, path: Path) -> None:
    """Write a NIfTI file, compressed if its name ends in ``.gz``. Raises OSError (ENOSPC) when the disk is full."""
    write_with_itk(image, path)
    if not is_complete(path, image):
        raise _disk_full(path)


def _disk_full(path: Path) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


for _image_format in (
    ImageFormat("NIfTI", NIFTI_ENDINGS, sitk.ReadImage, write_nifti, check_storage, describe_doubt),
    ImageFormat("NRRD", (".nrrd",), sitk.ReadImage, write_with_itk, check_storage),
    ImageFormat("MetaImage", (".mha",), sitk.ReadImage, write_with_itk, check_storage),
    # The header and the voxels are two files, which cannot be written as one.
    ImageFormat("MetaImage header", (".mhd",), sitk.ReadImage, None, check_storage),
    ImageFormat("ITK", (), sitk.ReadImage, write_with_itk, check_storage),
):
    register_image_format(_image_format)
