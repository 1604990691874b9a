"""Render volumes as pictures: upright slices, contours, warped grids and colour maps, as WebP."""

import base64
import colorsys
import io
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import zoom

# The axis of an array (z, y, x) that a plane is perpendicular to.
PLANES = {"axial": 0, "coronal": 1, "sagittal": 2}
# The side of the body at a picture's left, right, top and bottom: seen from the feet, the front and the left.
SIDES = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
# The longest side of a picture of lines has about this number of pixels; where voxels are large, lines are finer.
_LINE_PIXELS = 340
DASH = 3
# log2 of the Jacobian determinant at the ends of its colour map: half and twice the volume.
JACOBIAN_SPAN = 1.0
FOLDED = (0, 0, 0)
GRID_LINE = (125, 225, 255)
# Options of WebP by the kind of picture: grey values, colours, and, without loss, lines on a transparent ground.
_ENCODING: dict[str, dict[str, Any]] = {
    "L": {"quality": 70},
    "RGB": {"quality": 75},
    "RGBA": {"lossless": True, "quality": 40},
}

Pixels = NDArray[np.uint8]


def slice_of(volume: NDArray[Any], plane: str, index: int) -> NDArray[Any]:
    """Take a slice (rows, columns) of a volume (z, y, x) in LPS order, turned front or head up and right to the left.

    Axial slices are seen from the feet, coronal ones from the front, sagittal ones from the left.
    """
    section = np.take(volume, index, axis=PLANES[plane])
    return section if plane == "axial" else section[::-1]


def fineness(size: Sequence[int]) -> int:
    """Choose the width in pixels of a voxel, of a volume of that size, in pictures of lines."""
    return max(1, round(_LINE_PIXELS / max(size)))


def outlines(labels: NDArray[np.int32], finer: int) -> NDArray[np.int32]:
    """Find the innermost pixels of each label's border; 0 elsewhere.

    Args:
        labels: a slice (rows, columns), 0 is background.
        finer: pixels a voxel (:func:`fineness`).
    """
    fine = np.repeat(np.repeat(labels, finer, axis=0), finer, axis=1)
    padded = np.pad(fine, 1, mode="edge")
    border = np.zeros(fine.shape, bool)
    for neighbour in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
        border |= neighbour != fine
    return np.where(border, fine, 0)


def contours(labels: NDArray[np.int32], finer: int, *, dashed: bool) -> Pixels:
    """Draw outlines in the labels' colours, RGBA, transparent elsewhere."""
    lines = outlines(labels, finer)
    if dashed:
        lines = np.where(np.indices(lines.shape).sum(axis=0) // DASH % 2, lines, 0)
    picture = np.zeros((*lines.shape, 4), np.uint8)
    for label in np.unique(lines[lines != 0]).tolist():
        picture[lines == label] = (*colour_of(label), 255)
    return picture


def grid_lines(flow: NDArray[np.float32], plane: str, index: int, step: float, finer: int) -> NDArray[np.bool_]:
    """Find the pixels of the moving image's straight grid after warping.

    Args:
        flow: (3, z, y, x), components (x, y, z), in voxels.
        plane: name of the plane.
        index: of the slice.
        step: voxels between lines.
        finer: pixels a voxel (:func:`fineness`).
    """
    across = PLANES[plane]
    rows, columns = (size for axis, size in enumerate(flow.shape[1:]) if axis != across)
    lines = np.zeros((finer * rows, finer * columns), bool)
    for axis in {0, 1, 2} - {across}:
        moved = np.take(flow[2 - axis], [index], axis=across)
        positions = np.arange(moved.shape[axis]).reshape([-1 if k == axis else 1 for k in range(3)])
        # Positions count from the edges of voxels, so that lines of an unwarped grid lie between voxels.
        looked_up = slice_of(moved + positions + 0.5, plane, 0)
        cell = np.floor(zoom(looked_up, finer, order=1, mode="nearest", grid_mode=True) / step)
        lines[1:] |= cell[1:] != cell[:-1]
        lines[:, 1:] |= cell[:, 1:] != cell[:, :-1]
    return lines


def grid_picture(lines: NDArray[np.bool_]) -> Pixels:
    """Draw lines in one colour, RGBA, transparent elsewhere."""
    return np.where(lines[..., None], (*GRID_LINE, 255), 0).astype(np.uint8)


def jacobian_picture(determinant: NDArray[np.float32]) -> Pixels:
    """Colour the determinant, RGB: blue where the moving image is locally smaller, red where larger, black folds."""
    log = np.log2(np.clip(determinant, 1e-3, None))
    picture = palette("RdBu_r")[_levels(log / JACOBIAN_SPAN / 2 + 0.5)]
    picture[determinant <= 0] = FOLDED
    return picture


def uncertainty_picture(uncertainty: NDArray[np.float32], top: float) -> Pixels:
    """Colour an uncertainty from 0 to ``top`` (mm), RGB."""
    return palette("magma")[_levels(uncertainty / top)]


@cache
def palette(name: str) -> Pixels:
    """Get a colour map of matplotlib, (256, 3)."""
    from matplotlib import colormaps

    return np.asarray(np.round(255 * colormaps[name](np.arange(256))[:, :3]), np.uint8)


def colour_of(label: int) -> tuple[int, int, int]:
    """Choose a bright colour for a label; neighbouring numbers differ by the golden angle in hue."""
    hue = (0.02 + 0.618034 * label) % 1.0
    red, green, blue = colorsys.hls_to_rgb(hue, 0.5 + 0.12 * (label % 2), 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def encode_webp(pixels: Pixels) -> str:
    """Encode a picture as WebP in base64: grey values (rows, columns), or RGB or RGBA (rows, columns, 3 or 4)."""
    image = Image.fromarray(pixels)
    stream = io.BytesIO()
    image.save(stream, format="WEBP", method=4, **_ENCODING[image.mode])
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _levels(share: NDArray[Any]) -> NDArray[np.intp]:
    return np.clip(255 * share, 0, 255).astype(np.intp)
