"""SimpleITK images to and from NumPy arrays, and LPS to and from RAS."""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from llmreg.geometry.grid import Grid


def image_to_array(image: sitk.Image) -> NDArray[Any]:
    """The voxels as an array (z, y, x), in which vectors have their components on a last axis."""
    array: NDArray[Any] = sitk.GetArrayFromImage(image)
    return array


def array_to_image(array: NDArray[Any], grid: Grid) -> sitk.Image:
    """An image with the voxels of an array (z, y, x) on a grid.

    Raises:
        ValueError: the array does not fit the grid.
    """
    if array.shape != grid.shape:
        raise ValueError(f"array of shape {array.shape} does not fit a grid of shape {grid.shape}")
    return place_image(sitk.GetImageFromArray(np.ascontiguousarray(array)), grid)


def place_image(image: sitk.Image, grid: Grid) -> sitk.Image:
    """Give an image the spacing, origin and direction of a grid, and return it."""
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return image


def orient_to_lps(image: sitk.Image) -> sitk.Image:
    """The same voxels, with axes permuted and flipped to run as nearly as possible to left, posterior, superior."""
    result: sitk.Image = sitk.DICOMOrient(image, "LPS")
    return result


def lps_to_ras(vectors: NDArray[Any]) -> NDArray[Any]:
    """Points or vectors (..., 3), mm, from LPS to RAS. The same change of signs leads from RAS to LPS."""
    return np.asarray(vectors * np.array([-1, -1, 1], dtype=vectors.dtype))


ras_to_lps = lps_to_ras
