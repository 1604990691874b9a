"""Label maps of two touching boxes, and fields that move them."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from llmreg.geometry.field import DisplacementField
from llmreg.geometry.grid import Grid

SPACING = (1.5, 2.0, 1.0)
SHIFT = np.array([3.0, -2.0, 2.0])  # mm, whole voxels


def label_image(shift_mm: np.ndarray | None = None, flipped: bool = False) -> sitk.Image:
    """Two touching boxes; ``flipped`` stores the same anatomy on a grid with another direction and margin."""
    array = np.zeros((20, 18, 22), dtype=np.uint8)
    array[6:13, 5:11, 6:10], array[6:13, 5:11, 10:15] = 1, 4
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING)
    image.SetOrigin((-10.0, 5.0, 30.0) if shift_mm is None else (np.array([-10.0, 5.0, 30.0]) + shift_mm).tolist())
    return sitk.ConstantPad(sitk.DICOMOrient(image, "RAI"), [3, 0, 1], [0, 2, 0]) if flipped else image


def constant_field(image: sitk.Image, vector: np.ndarray) -> DisplacementField:
    grid = Grid.from_image(image)
    return DisplacementField(np.broadcast_to(vector, (*grid.shape, 3)).astype(np.float32), grid)


def plain_dice(a: np.ndarray, b: np.ndarray, label: int) -> float:
    return 2 * np.sum((a == label) & (b == label)) / (np.sum(a == label) + np.sum(b == label))
