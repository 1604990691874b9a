"""Volumes to pictures: upright slices, contours, warped grids and colour maps as WebP."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import zoom

# Which axis of an array (z, y, x) a plane is across.
PLANES = {"axial": 0, "coronal": 1, "sagittal": 2}
# What lies at a picture's left, right, top and bottom: patients are looked at from their feet, front and left.
SIDES = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
# Lines are drawn finer than voxels where those are large on the page: about so many pixels along the longest side.
_LINE_PIXELS = 340
DASH = 3
# log2 of the Jacobian's determinant at either end of its colours: half and twice the volume.
JACOBIAN_SPAN = 1.0
FOLDED = (0, 0, 0)
GRID_LINE = (125, 225, 255)
_GREY_QUALITY, _COLOUR_QUALITY = 70, 75

Pixels = NDArray[np.uint8]


def slice_of(volume: NDArray[Any], plane: str, index: int) -> NDArray[Any]:
    """A slice (rows, columns) of a volume (z, y, x) in LPS order, as it is shown: front or head up, right on the left.

    Axial slices are seen from the feet, coronal ones from the front, sagittal ones from the left.
    """
    found = np.take(volume, index, axis=PLANES[plane])
    return found if plane == "axial" else found[::-1]


def fineness(size: Sequence[int]) -> int:
    """How many pixels a voxel of a volume of that size is wide where lines are drawn."""
    return max(1, round(_LINE_PIXELS / max(size)))


def outlines(labels: NDArray[np.int32], finer: int) -> NDArray[np.int32]:
    """The innermost pixels of each label's border; 0 elsewhere.

    Args:
        labels: a slice (rows, columns), 0 is background.
        finer: pixels a voxel (:func:`fineness`).
    """
    fine = np.repeat(np.repeat(labels, finer, axis=0), finer, axis=1)
    around = np.pad(fine, 1, mode="edge")
    border = np.zeros(fine.shape, bool)
    for neighbour in (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:]):
        border |= neighbour != fine
    return np.where(border, fine, 0)


def contours(labels: NDArray[np.int32], finer: int, dashed: bool) -> Pixels:
    """Outlines in the labels' colours, RGBA, transparent elsewhere."""
    lines = outlines(labels, finer)
    if dashed:
        rows, columns = np.indices(lines.shape)
        lines = np.where((rows + columns) // DASH % 2, lines, 0)
    picture = np.zeros((*lines.shape, 4), np.uint8)
    for label in np.unique(lines[lines != 0]).tolist():
        picture[lines == label] = (*colour_of(label), 255)
    return picture


def grid_lines(flow: NDArray[np.float32], plane: str, index: int, step: float, finer: int) -> NDArray[np.bool_]:
    """Where the moving image's straight grid comes to lie.

    Args:
        flow: (3, z, y, x), components (x, y, z), in voxels.
        plane: which slices.
        index: of the slice.
        step: voxels between lines.
        finer: pixels a voxel (:func:`fineness`).
    """
    across = PLANES[plane]
    rows, columns = (size for axis, size in enumerate(flow.shape[1:]) if axis != across)
    lines = np.zeros((finer * rows, finer * columns), bool)
    for axis in {0, 1, 2} - {across}:
        moved = np.take(flow[2 - axis], [index], axis=across)
        place = np.arange(moved.shape[axis]).reshape([-1 if k == axis else 1 for k in range(3)])
        # From voxels' edges, so that lines of a resting grid lie between voxels.
        looked_up = slice_of(moved + place + 0.5, plane, 0)
        cell = np.floor(zoom(looked_up, finer, order=1, mode="nearest", grid_mode=True) / step)
        lines[1:] |= cell[1:] != cell[:-1]
        lines[:, 1:] |= cell[:, 1:] != cell[:, :-1]
    return lines


def grid_picture(lines: NDArray[np.bool_]) -> Pixels:
    """Lines in one colour, RGBA, transparent elsewhere."""
    picture = np.zeros((*lines.shape, 4), np.uint8)
    picture[lines] = (*GRID_LINE, 255)
    return picture


def jacobian_picture(determinant: NDArray[np.float32]) -> Pixels:
    """Blue where the moving image is locally smaller than the fixed one, red where it is larger, folding black; RGB."""
    log = np.log2(np.clip(determinant, 1e-3, None))
    picture = palette("RdBu_r")[_levels(log / JACOBIAN_SPAN / 2 + 0.5)]
    picture[determinant <= 0] = FOLDED
    return picture


def uncertainty_picture(uncertainty: NDArray[np.float32], top: float) -> Pixels:
    """From 0 to ``top`` (mm), RGB."""
    return palette("magma")[_levels(uncertainty / top)]


@cache
def palette(name: str) -> Pixels:
    """A colour map of matplotlib, (256, 3)."""
    from matplotlib import colormaps

    return np.asarray(np.round(255 * colormaps[name](np.arange(256))[:, :3]), np.uint8)


def colour_of(label: int) -> tuple[int, int, int]:
    """A bright colour; neighbouring numbers differ by the golden angle in hue."""
    import colorsys

    hue = (0.02 + 0.618034 * label) % 1.0
    red, green, blue = colorsys.hls_to_rgb(hue, 0.5 + 0.12 * (label % 2), 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def grey_webp(pixels: Pixels) -> bytes:
    """A slice of grey values."""
    return _webp(Image.fromarray(pixels), quality=_GREY_QUALITY)


def colour_webp(pixels: Pixels) -> bytes:
    """A slice of colours, RGB."""
    return _webp(Image.fromarray(pixels), quality=_COLOUR_QUALITY)


def line_webp(pixels: Pixels) -> bytes:
    """Lines on a transparent ground, RGBA; nothing is lost."""
    return _webp(Image.fromarray(pixels), lossless=True, quality=40)


def text_of(content: bytes) -> str:
    """Base64."""
    return base64.b64encode(content).decode("ascii")


def _webp(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="WEBP", method=4, **options)
    return stream.getvalue()


def _levels(share: NDArray[Any]) -> NDArray[np.intp]:
    return np.clip(255 * share, 0, 255).astype(np.intp)
