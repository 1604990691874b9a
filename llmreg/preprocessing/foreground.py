"""The foreground of an image: the body or organ, without air and table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from llmreg.geometry.arrays import image_to_array, orient_to_lps
from llmreg.geometry.grid import Grid

AIR_HU = -500.0
# A background of one constant value (skull-stripped or masked images) fills at least this share.
CONSTANT_BACKGROUND = 0.2
# The foreground is computed in voxels of about this length, which is at least 16 times faster on 512^2 slices.
COARSE_MM = 3.0
# A scanner's table is thinner than this where it touches the body.
TABLE_MM = 12.0
# Two legs or breasts are one foreground; parts smaller than this share of the largest one are no part of a body.
LEAST_PART = 0.2


@dataclass(frozen=True, eq=False)
class Foreground:
    """The body or organ, without air and table.

    Attributes:
        mask: (z, y, x).
        grid: the mask's; it samples the image's grid in steps of whole voxels.
        intensities: the image's values at the mask's voxels, 1-D.
    """

    mask: NDArray[np.bool_]
    grid: Grid
    intensities: NDArray[Any]

    @cached_property
    def _box(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The least and largest LPS coordinates of the mask's voxels, mm, also where the grid is oblique."""
        points = self.grid.index_to_physical(np.argwhere(self.mask)[:, ::-1])
        return points.min(axis=0), points.max(axis=0)

    @property
    def centre(self) -> NDArray[np.float64]:
        """Middle of the bounding box, mm LPS."""
        first, last = self._box
        return (first + last) / 2

    @property
    def extent(self) -> NDArray[np.float64]:
        """Edge lengths of the bounding box along the LPS axes, mm."""
        first, last = self._box
        voxel = np.abs(self.grid.matrix).sum(axis=1)
        return np.asarray(last - first + voxel)


def find_foreground(image: sitk.Image, *, ct: bool, mask: sitk.Image | None = None) -> Foreground:
    """Find the foreground from the image alone, unless the user gives a mask.

    In CT it lies above -500 HU, without parts thinner than a table. In images with a constant background it is the
    rest. In others it lies above Li's minimum cross-entropy threshold (Li and Lee 1993). Of these voxels, the largest
    connected component and others of a similar size are kept, and pinholes are filled.

    Args:
        image: a scalar image along the LPS axes (see :func:`llmreg.geometry.arrays.orient_to_lps`).
        ct: whether its values are Hounsfield units.
        mask: the user's foreground on the stored image's grid, above 0; an empty one is not used.
    """
    # At least four voxels are left along each axis, as smoothing needs.
    factors = [
        max(1, min(int(COARSE_MM / s), n // 4)) for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)
    ]
    small = sitk.Shrink(image, factors)
    values = image_to_array(small)
    inside = np.zeros(values.shape, bool)
    if mask is not None:
        inside = image_to_array(sitk.Shrink(orient_to_lps(mask), factors)) > 0
    if not inside.any():
        inside = _segment(small, values, ct=ct)
    return Foreground(inside, Grid.from_image(small), values[inside])


def _segment(image: sitk.Image, values: NDArray[Any], *, ct: bool) -> NDArray[np.bool_]:
    lowest = values.min()
    radius = 1
    if ct and lowest < AIR_HU:
        mask = sitk.GetImageFromArray((values > AIR_HU).astype(np.uint8))
        radius = max(1, math.ceil(TABLE_MM / 2 / min(image.GetSpacing()[:2])))
    elif (values == lowest).mean() > CONSTANT_BACKGROUND:
        mask = sitk.GetImageFromArray((values > lowest).astype(np.uint8))
    else:
        smooth = sitk.SmoothingRecursiveGaussian(sitk.Cast(image, sitk.sitkFloat32), min(image.GetSpacing()))
        mask = sitk.LiThreshold(smooth, 0, 1)
    # Opening works within slices, since there may be few and thick ones.
    opened = sitk.BinaryMorphologicalOpening(mask, [radius, radius, 0])
    components = sitk.RelabelComponent(sitk.ConnectedComponent(opened), sortByObjectSize=True)
    sizes = np.bincount(image_to_array(components).ravel())[1:]
    kept = int((sizes >= LEAST_PART * sizes.max(initial=1)).sum())
    filled = sitk.VotingBinaryIterativeHoleFilling(sitk.BinaryThreshold(components, 1, max(kept, 1)), [1, 1, 1], 1) > 0
    inside = image_to_array(filled).astype(bool)
    return inside if inside.any() else np.ones_like(inside)
