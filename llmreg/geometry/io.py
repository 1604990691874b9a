"""Images and displacement fields to and from files, arrays and other programs' conventions."""

from __future__ import annotations

import errno
import logging
import math
import os
import re
import shutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from llmreg.errors import UserError
from llmreg.files import atomic_write
from llmreg.geometry.field import DisplacementField
from llmreg.geometry.grid import Grid
from llmreg.geometry.storage import is_whole_nifti, storage_problem

log = logging.getLogger(__name__)

# A disk with less than this is full.
NEARLY_NOTHING = 2**20
# ITK's recursive smoothing needs so many along each axis.
FEWEST_VOXELS = 4
# What scans have, mm and generously; whatever lies beyond was written in another unit. Slices of human scans lie up to
# some 20 mm apart. A volume's longest edge spans from a mouse's organ in micro-CT (voxels of 0.005 mm and less are
# welcome) to a tall man from head to foot. Slices are at most some 50 times as thick as their voxels are wide.
COARSEST_SPACING = 50.0
LONGEST_EDGE = (2.0, 3000.0)
STRONGEST_ANISOTROPY = 100.0
# Rounded direction cosines are no shear: a hundredth is half a degree.
SHEAR = 0.01
# Numbers that wrapped around in 16 bits: where the lowest HU that programs write (-5000) comes to lie, the share of
# voxels that air and fat exceed in every CT, and what an image reaches before it overflows.
WRAPPED_HU = 2**16 - 5000
MANY = 0.01
BRIGHT = 30000


def read_image(path: Path) -> sitk.Image:
    """A 3-D scalar image; further axes and components of length 1 are dropped. Doubts about its place are logged.

    Raises:
        UserError: the file is missing, damaged, truncated, not a 3-D scalar image, or cannot be of this size.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, but an image is one file: convert a DICOM series to .nii.gz first.")
    if not path.is_file():
        raise UserError(f"The image {path} does not exist: check its name.")
    _check_whole(path)
    try:
        stored = sitk.ReadImage(str(path))
    except RuntimeError as error:
        if re.search("orthonormal|Refusing to change (direction|spacing)", str(error)):
            raise UserError(_unsound(path)) from error
        raise UserError(
            f"{path} cannot be read as an image: copy it again if it is damaged, else save it as .nii.gz."
        ) from error
    image = usable(stored, path)
    if path.name.endswith((".nii", ".nii.gz")) and (doubt := _doubt_of_place(stored, Grid.from_image(image))):
        warn_once(f"{path} {doubt}")
    return image


def voxels_in(path: Path) -> int:
    """How many voxels a file's header announces. Raises RuntimeError when ITK cannot tell."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return math.prod(reader.GetSize())


def usable(image: sitk.Image, name: Path | str) -> sitk.Image:
    """The image as a 3-D scalar one; ``name`` is what errors call it.

    Raises:
        UserError: it is none, or cannot be of this size.
    """
    volume = _scalar(_volume(image, name), name)
    _check_geometry(volume, name)
    return volume


@cache
def warn_once(sentence: str) -> None:
    """Files are read at several steps, but a sentence is logged once in a process."""
    log.warning("%s", sentence)


def times(values: Iterable[float]) -> str:
    """For sentences: 1x1.5x2."""
    return "x".join(f"{value:.6g}" for value in values)


def _check_whole(path: Path) -> None:
    problem = storage_problem(path)
    if problem:
        raise UserError(problem)


def _volume(image: sitk.Image, path: Path | str) -> sitk.Image:
    size = image.GetSize()
    first, volumes = size[:3], math.prod(size[3:])
    if len(size) < 3 or (volumes == 1 and min(first) == 1):
        problem = f"is a single slice (size {times(size)}), but images must be 3-D: save all slices in one file"
    elif volumes > 1 and min(first) == 1:
        problem = f"has size {times(size)}, but an image is one 3-D volume: take out the axes of length 1"
    elif volumes > 1:
        problem = f"holds {volumes} volumes of {times(first)}, but an image is one 3-D volume: give each its own file"
    elif min(first) < FEWEST_VOXELS:
        problem = (
            f"has size {times(size)}, but an image needs {FEWEST_VOXELS} voxels or more along each axis: give more of "
            "the scan"
        )
    else:
        return image if len(size) == 3 else image[(slice(None),) * 3 + (0,) * (len(size) - 3)]
    raise UserError(f"{path} {problem}.")


def _scalar(image: sitk.Image, path: Path | str) -> sitk.Image:
    kind, components = image.GetPixelIDTypeAsString(), image.GetNumberOfComponentsPerPixel()
    if kind.startswith("complex"):
        raise UserError(f"{path} holds complex numbers, but an image has one value per voxel: save their magnitude.")
    if components != 1:
        raise UserError(
            f"{path} has {components} values per voxel, as colours and vectors have, but an image has one: save it in "
            "grey, or one component of it."
        )
    return sitk.VectorIndexSelectionCast(image, 0) if kind.startswith("vector") else image


def _check_geometry(image: sitk.Image, path: Path | str) -> None:
    spacing, axes = np.array(image.GetSpacing()), np.reshape(image.GetDirection(), (3, 3))
    if not np.allclose(axes.T @ axes, np.eye(3), rtol=0, atol=SHEAR):
        raise UserError(_unsound(path))
    edges = spacing * image.GetSize()
    shortest, longest = LONGEST_EDGE
    coarsest = min(COARSEST_SPACING, STRONGEST_ANISOTROPY * spacing.min())
    if not shortest <= edges.max() <= longest or spacing.max() > coarsest:
        raise UserError(
            f"{path} has voxels of {times(spacing)} mm and measures {times(edges)} mm, as if its spacing were in "
            "metres or micrometres: correct the spacing, or its unit, in the header."
        )


def _unsound(path: Path | str) -> str:
    return (
        f"{path} lies on no grid with right angles (its axes are sheared, or its header holds zeros): resample it, or "
        "correct its spacing and direction."
    )


def _doubt_of_place(image: sitk.Image, grid: Grid) -> str:
    """What a NIfTI image's header leaves open about where it lies, and what is taken; empty when nothing is."""
    by_quaternion, by_matrix = (int(image.GetMetaData(f"{form}_code")) > 0 for form in ("qform", "sform"))
    if not by_quaternion and not by_matrix:
        return (
            "does not say how it lies in the body (neither qform nor sform is set), so its axes are taken to run to "
            "the left, the back and the head: write its direction into the header if they do not."
        )
    if not by_matrix:
        return ""
    # ITK takes the voxel size from pixdim, and turns to the qform where the sform is sheared.
    unit = {1: 1000.0, 3: 0.001}.get(int(image.GetMetaData("xyzt_units")) & 7, 1.0)
    stated = unit * np.array([image.GetMetaData(f"srow_{axis}").split() for axis in "xyz"], dtype=float)
    apart = np.abs(ras_to_lps(stated.T).T - grid.affine[:3]) @ [*grid.size, 1]
    if apart.max() <= max(grid.spacing):
        return ""
    return (
        f"is not placed as its sform says (sheared, or at odds with pixdim; up to {apart.max():.3g} mm apart): write "
        "its geometry anew if other programs show it elsewhere."
    )


def check_values(image: sitk.Image, path: Path | str) -> None:
    """Raises UserError when the image holds NaN, infinite or overflowed values, or one value only."""
    values = sitk.GetArrayViewFromImage(image)
    if not np.isfinite(values).all():
        raise UserError(f"{path} holds NaN or infinite values: replace them with a number, for example 0.")
    if values.min() == values.max():
        raise UserError(f"{path} is empty, every voxel is {values.min()}: export the image again.")
    overflow = _overflow(values)
    if overflow:
        raise UserError(f"{path} {overflow}.")


def _overflow(values: NDArray[Any]) -> str:
    """How numbers left the range of their type, where the values leave no doubt; else empty.

    Numbers that wrapped around lie at the far end of the 16 bits, several of them, and the middle is empty. An image
    that was scaled to the full range has values in the middle; one value alone may be a padding.
    """
    lowest, highest = float(values.min()), float(values.max())
    if max(-lowest, highest) >= 2**31:
        return f"holds values up to {max(-lowest, highest):.3g}, beyond what scans measure: export the image again"
    if lowest >= 0 and WRAPPED_HU <= highest < 2**16:
        far = values[values >= 2**15]
        if WRAPPED_HU <= far.min() < highest and far.size > MANY * values.size:
            return (
                f"holds values from {far.min():g} to {highest:g}, as if negative numbers had been stored in an "
                "unsigned type: export it again as signed 16-bit"
            )
    if -(2**15) <= lowest < -(2**14) and highest >= BRIGHT:
        far = values[values < 0]
        if lowest < far.max() < -(2**14):
            return (
                f"holds values from {lowest:g} to {far.max():g}, as if numbers above {2**15 - 1} had been stored in a "
                "signed type: export it again as unsigned 16-bit"
            )
    return ""


def write_image(image: sitk.Image, path: Path) -> None:
    """Write an image. Raises OSError (ENOSPC) where the disk is full, which ITK passes over."""
    with atomic_write(Path(path)) as temporary:
        write_with_itk(image, temporary)


def write_with_itk(what: sitk.Image | sitk.Transform, path: Path) -> None:
    """Write to a path, which may be temporary. Raises OSError (ENOSPC) where the disk is full."""
    try:
        if isinstance(what, sitk.Transform):
            sitk.WriteTransform(what, str(path))
            whole = path.stat().st_size > 0
        else:
            sitk.WriteImage(what, str(path), useCompression=True)
            values = what.GetNumberOfPixels() * what.GetNumberOfComponentsPerPixel()
            whole = is_whole_nifti(path, values * what.GetSizeOfPixelComponent())
    except RuntimeError as error:
        # ITK names no cause.
        if shutil.disk_usage(path.parent).free > NEARLY_NOTHING:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
    if not whole:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def image_to_array(image: sitk.Image) -> NDArray[Any]:
    """The voxels as an array (z, y, x)."""
    return sitk.GetArrayFromImage(image)


def array_to_image(array: NDArray[Any], grid: Grid) -> sitk.Image:
    """An image with the voxels of an array (z, y, x) on a grid."""
    if array.shape != grid.shape:
        raise ValueError(f"array of shape {array.shape} does not fit a grid of shape {grid.shape}")
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return image


def oriented_lps(image: sitk.Image) -> sitk.Image:
    """The same voxels with axes permuted and flipped to lie as near as they can to left, posterior, superior."""
    return sitk.DICOMOrient(image, "LPS")


def read_transform(path: Path) -> sitk.Transform:
    """An ITK transform in three dimensions (.tfm, .txt, .mat, .h5 ...). Raises UserError when the file is none."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"The transform {path} does not exist: check its name.")
    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        raise UserError(f"{path} cannot be read as an ITK transform: save it as .tfm or .h5.") from error
    if transform.GetDimension() != 3:
        raise UserError(f"{path} is a transform in {transform.GetDimension()} dimensions: give one in 3.")
    return transform


def read_linear_transform(path: Path) -> sitk.Transform:
    """A linear ITK transform (.tfm, .txt, .mat, .h5 ...). Raises UserError when the file is none."""
    transform = read_transform(path)
    if not transform.IsLinear():
        raise UserError(f"{path} is not a linear 3-D transform: give a rigid or affine one.")
    return transform


def read_field(path: Path) -> DisplacementField:
    """An ITK vector field (mm, LPS). Raises UserError when the file is missing, damaged or no such field."""
    image = read_any(path, "displacement field")
    kind, components = image.GetPixelIDTypeAsString(), image.GetNumberOfComponentsPerPixel()
    if image.GetDimension() != 3 or components != 3:
        size = times((*image.GetSize(), *([components] if components > 1 else [])))
        raise UserError(
            f"{path} holds numbers of size {size} instead of a 3-D field of vectors as ITK has them: convert it with "
            "llmreg_convert_field if it is a field of another format."
        )
    if "float" not in kind:
        raise UserError(f"{path} holds a {kind}, as colour images do, and no displacements: give another file.")
    return DisplacementField.from_image(image)


def read_any(path: Path, what: str) -> sitk.Image:
    """Whatever ITK makes of a file. Raises UserError when it is missing or damaged, or holds NaN."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"The {what} {path} does not exist: check its name.")
    _check_whole(path)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        if re.search("orthonormal|Refusing to change (direction|spacing)", str(error)):
            raise UserError(_unsound(path)) from error
        raise UserError(f"{path} cannot be read as a {what}: check the file.") from error
    values = sitk.GetArrayViewFromImage(image)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UserError(f"{path} holds NaN or infinite values: replace them by numbers.")
    return image


def write_field(field: DisplacementField, path: Path) -> None:
    """As an ITK vector image (float32, mm, LPS); NIfTI files get dimension 5 and intent 1007."""
    write_image(field.to_image(), path)


def lps_to_ras(vectors: NDArray[Any]) -> NDArray[Any]:
    """Points or vectors (..., 3) in mm from LPS to RAS. The same flips of x and y lead back."""
    return vectors * np.array([-1, -1, 1], dtype=vectors.dtype)


ras_to_lps = lps_to_ras
