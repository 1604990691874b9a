"""Where in an image the body or organ is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from llmreg.geometry.grid import Grid
from llmreg.geometry.io import image_to_array, oriented_lps

AIR_HU = -500.0
# A background of one constant value (skull-stripped or masked images) fills at least this share.
CONSTANT_BACKGROUND = 0.2
# A body's outline is looked for in voxels of about this length: on 512^2 slices that is 16 times faster or more.
COARSE_MM = 3.0
# A scanner's table is thinner, where it touches the body.
TABLE_MM = 12.0
# Two legs or breasts are one foreground; what is smaller than this share of the largest part belongs to no body.
LEAST_PART = 0.2


@dataclass(frozen=True, eq=False)
class Foreground:
    """The body or organ, without air and table.

    Attributes:
        mask: (z, y, x).
        grid: the mask's; every so many voxels of the image's grid, none of it averaged.
        intensities: the image's values at the mask's voxels, 1-D.
    """

    mask: NDArray[np.bool_]
    grid: Grid
    intensities: NDArray[Any]

    @cached_property
    def _box(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The least and largest coordinates of the mask's voxels, along the LPS axes even where the grid is oblique."""
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


def find_foreground(image: sitk.Image, ct: bool, given: sitk.Image | None = None) -> Foreground:
    """The foreground, from the image alone unless a mask is given.

    CT: above -500 HU, without what is thinner than a table. Images with a constant background: all else. Others: Li's
    minimum cross-entropy threshold. Then the largest connected component and others of a like size, pinholes filled.

    Args:
        image: a scalar image along the LPS axes (see :func:`llmreg.geometry.io.oriented_lps`).
        ct: whether its values are Hounsfield units.
        given: the user's mask on the stored image's grid, above 0 where it counts; an empty one is not used.
    """
    # Four voxels are left along each axis, which smoothing needs.
    factors = [
        max(1, min(int(COARSE_MM / s), n // 4)) for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)
    ]
    small = sitk.Shrink(image, factors)
    values = image_to_array(small)
    mask = (
        np.zeros(values.shape, bool) if given is None else image_to_array(sitk.Shrink(oriented_lps(given), factors)) > 0
    )
    if not mask.any():
        mask = _found(small, values, ct)
    return Foreground(mask, Grid.from_image(small), values[mask])


def _found(image: sitk.Image, values: NDArray[Any], ct: bool) -> NDArray[np.bool_]:
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
    # Within slices, since slices may be few and thick.
    opened = sitk.BinaryMorphologicalOpening(mask, [radius, radius, 0])
    components = sitk.RelabelComponent(sitk.ConnectedComponent(opened), sortByObjectSize=True)
    sizes = np.bincount(image_to_array(components).ravel())[1:]
    kept = int((sizes >= LEAST_PART * sizes.max(initial=1)).sum())
    filled = sitk.VotingBinaryIterativeHoleFilling(sitk.BinaryThreshold(components, 1, max(kept, 1)), [1, 1, 1], 1) > 0
    found = image_to_array(filled).astype(bool)
    return found if found.any() else np.ones_like(found)
