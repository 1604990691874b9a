"""Images and displacement fields to and from files, arrays and other programs' conventions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from llmreg.errors import UserError
from llmreg.files import written_whole
from llmreg.geometry.field import DisplacementField
from llmreg.geometry.grid import Grid
from llmreg.geometry.storage import storage_problem

# ITK's recursive smoothing needs so many along each axis.
FEWEST_VOXELS = 4


def read_image(path: Path) -> sitk.Image:
    """A 3-D scalar image; a fourth axis of length 1 is dropped.

    Raises:
        UserError: the file is missing, damaged, truncated or not a 3-D scalar image.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"The image {path} does not exist: check its name.")
    _check_whole(path)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        if "orthonormal" in str(error):
            raise UserError(f"{path} has sheared axes: resample it to a grid with right angles.") from error
        raise UserError(f"{path} cannot be read as an image: it is damaged or no image, copy it again.") from error
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[:, :, :, 0]
    if image.GetDimension() != 3 or min(image.GetSize()) < FEWEST_VOXELS:
        raise UserError(
            f"{path} has size {image.GetSize()}, but images must be 3-D, with {FEWEST_VOXELS} voxels or more along "
            "each axis: convert it."
        )
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise UserError(f"{path} has {image.GetNumberOfComponentsPerPixel()} values per voxel, but an image has one.")
    return image


def _check_whole(path: Path) -> None:
    problem = storage_problem(path)
    if problem:
        raise UserError(problem)


def check_values(image: sitk.Image, path: Path) -> None:
    """Raises UserError when the image holds NaN or infinite values, or one value only."""
    values = sitk.GetArrayViewFromImage(image)
    if not np.isfinite(values).all():
        raise UserError(f"{path} holds NaN or infinite values: replace them with a number, for example 0.")
    if values.min() == values.max():
        raise UserError(f"{path} is empty, every voxel is {values.min()}: export the image again.")


def write_image(image: sitk.Image, path: Path) -> None:
    with written_whole(Path(path)) as temporary:
        sitk.WriteImage(image, str(temporary), useCompression=True)


def array_of(image: sitk.Image) -> NDArray[Any]:
    """The voxels as an array (z, y, x)."""
    return sitk.GetArrayFromImage(image)


def image_from(array: NDArray[Any], grid: Grid) -> sitk.Image:
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


def read_field(path: Path) -> DisplacementField:
    """An ITK vector field (mm, LPS). Raises UserError when the file is missing, damaged or no such field."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"The displacement field {path} does not exist: check its name.")
    _check_whole(path)
    try:
        image = sitk.ReadImage(str(path), sitk.sitkVectorFloat32)
    except RuntimeError as error:
        raise UserError(f"{path} cannot be read as a displacement field: check the file.") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 3:
        raise UserError(f"{path} is not a 3-D field of three components: give a field written by llmreg_predict.")
    return DisplacementField.from_image(image)


def write_field(field: DisplacementField, path: Path) -> None:
    """As an ITK vector image (float32, mm, LPS); NIfTI files get dimension 5 and intent 1007."""
    write_image(field.to_image(), path)


def to_learn2reg(field: DisplacementField, moving_grid: Grid | None = None) -> NDArray[np.float32]:
    """Learn2Reg's array (X, Y, Z, 3): voxels along the array axes, added to the fixed index.

    Args:
        field: on the fixed image's grid.
        moving_grid: the moving image's grid; the fixed one when the images share it, as the challenge assumes.
    """
    moving = field.grid if moving_grid is None else moving_grid
    target = moving.physical_to_index(field.grid.physical_points() + field.vectors)
    return (target - field.grid.indices()).transpose(2, 1, 0, 3).astype(np.float32)


def from_learn2reg(array: NDArray[Any], grid: Grid, moving_grid: Grid | None = None) -> DisplacementField:
    """The inverse of :func:`to_learn2reg`."""
    moving = grid if moving_grid is None else moving_grid
    target = moving.index_to_physical(array.transpose(2, 1, 0, 3) + grid.indices())
    return DisplacementField((target - grid.physical_points()).astype(np.float32), grid)


def write_learn2reg(field: DisplacementField, path: Path, moving_grid: Grid | None = None) -> None:
    """Learn2Reg's array as ``displacements`` in an .npz file, or as a plain four-dimensional .nii.gz file.

    The NIfTI file has the identity as its affine, as the challenge's evaluation reads the voxels alone.
    """
    path = Path(path)
    array = to_learn2reg(field, moving_grid)
    if path.suffix == ".npz":
        with written_whole(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, displacements=array)
        return
    volumes = [sitk.GetImageFromArray(np.ascontiguousarray(array[..., k].T)) for k in range(3)]
    write_image(sitk.JoinSeries(volumes), path)


def lps_to_ras(vectors: NDArray[Any]) -> NDArray[Any]:
    """Points or vectors (..., 3) in mm from LPS to RAS. The same flips of x and y lead back."""
    return vectors * np.array([-1, -1, 1], dtype=vectors.dtype)


ras_to_lps = lps_to_ras
