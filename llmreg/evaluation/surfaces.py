"""Distances between the surfaces of two label maps, label by label.

There are two definitions of a surface: its voxels, as in MONAI and medpy (HD95 and ASSD in mm), and elements between
voxels that are weighted by their area, as in Google's surface-distance and Learn2Reg (HD95 in voxels).
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, find_objects, label
from scipy.spatial import cKDTree

from llmreg.evaluation.metrics import Array, check_ids, clip_ids, count_voxels

Mask = NDArray[np.bool_]
Score = TypeVar("Score")
# Each connected piece of up to four corners of a cube has an area by marching cubes. The key of a piece is a sum over
# its corners: the square of the number of neighbours that a corner has in the piece. Areas are rounded as in the
# original's table.
_CUT, _EDGE = np.sqrt(3) / 8, np.sqrt(1 / 2)
_AREA_OF_PIECE = {
    0: _CUT,  # one corner
    2: _EDGE,  # two corners of an edge
    6: 1 / 2 + 3 * _CUT,  # three corners of a face
    10: _EDGE + _CUT + _CUT + _CUT + _CUT,  # a path along three axes
    12: _CUT + _CUT + _CUT + _CUT + _CUT + _CUT,  # a corner with its three neighbours
    16: 1.0,  # a face
}


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances between the surfaces of a label, in mm.

    Attributes:
        hd95: 95th percentile of the distances of each direction, then the larger of the two.
        assd: average symmetric surface distance: the mean over the surface voxels of both sides together.
    """

    hd95: float
    assd: float


def surface_distances_per_label(
    warped: Array, fixed: Array, labels: Iterable[int], spacing_xyz_mm: Sequence[float], threads: int = 1
) -> dict[int, SurfaceDistances]:
    """HD95 and ASSD of each label.

    The surface of a label is its voxels with a face neighbour (or the edge of the image) outside it; distances are
    between voxel centres. Equal to ``monai.metrics.compute_hausdorff_distance(percentile=95, directed=False)`` and
    ``compute_average_surface_distance(symmetric=True)``, but only in the box that holds the label. NaN where either
    side lacks the label: a distance to nothing has no value, so read them together with Dice, which is 0 there.

    Args:
        warped: (z, y, x) the warped moving label map on the fixed grid.
        fixed: (z, y, x) the fixed label map.
        labels: positive ids.
        spacing_xyz_mm: voxel size in ITK's order x, y, z.
        threads: labels scored at the same time.

    Raises:
        ValueError: when the shapes differ or an id is not positive.
    """
    spacing = np.asarray(spacing_xyz_mm, dtype=np.float64)[::-1]

    def score(warped_mask: Mask, fixed_mask: Mask) -> SurfaceDistances:
        # Erosion takes the outside of the box for background, so that eroding the box is eroding the whole.
        a, b = (inside & ~binary_erosion(inside) for inside in (warped_mask, fixed_mask))
        a_to_b, b_to_a = _distances(a, b, spacing), _distances(b, a, spacing)
        hd95 = max(float(np.percentile(distances, 95)) for distances in (a_to_b, b_to_a))
        return SurfaceDistances(hd95, float((a_to_b.sum() + b_to_a.sum()) / (a_to_b.size + b_to_a.size)))

    ids = check_ids(warped, fixed, labels)
    scores = _score_in_boxes(score, warped, fixed, ids, threads)
    return {i: scores.get(i, SurfaceDistances(np.nan, np.nan)) for i in ids}


def hd95_learn2reg_per_label(
    warped: Array, fixed: Array, labels: Iterable[int], unwarped: Array, threads: int = 1
) -> dict[int, float]:
    """95th percentile of the distances between surface elements of each label in voxels, as Learn2Reg reports it.

    A surface element lies between the eight voxels around a corner when some but not all of them are in the label,
    and weighs as much as marching cubes' area there; the percentile is the distance at which 95 % of the area is
    reached. Equal to ``surface_distance.compute_robust_hausdorff`` at a spacing of 1 (Nikolov et al. 2021,
    https://github.com/google-deepmind/surface-distance).

    Args:
        warped: (z, y, x) the warped moving label map on the fixed grid.
        fixed: (z, y, x) the fixed label map.
        labels: positive ids.
        unwarped: the moving label map before warping, on any grid.
        threads: labels scored at the same time.

    Returns:
        NaN where the fixed or the unwarped map lacks the label, infinity where warping lost it.

    Raises:
        ValueError: when the shapes differ or an id is not positive.
    """

    def score(warped_mask: Mask, fixed_mask: Mask) -> float:
        (a, area_a), (b, area_b) = _elements(warped_mask), _elements(fixed_mask)
        a_to_b, b_to_a = (_distances(of, to, np.ones(3)) for of, to in ((a, b), (b, a)))
        return max(_percentile_of_area(a_to_b, area_a), _percentile_of_area(b_to_a, area_b))

    ids = check_ids(warped, fixed, labels)
    scores = _score_in_boxes(score, warped, fixed, ids, threads)
    in_fixed, in_unwarped = (count_voxels(array, ids) for array in (fixed, unwarped))
    return {i: scores.get(i, np.inf) if in_fixed[i] and in_unwarped[i] else np.nan for i in ids}


def _score_in_boxes(
    score: Callable[[Mask, Mask], Score], a: Array, b: Array, ids: Sequence[int], threads: int
) -> dict[int, Score]:
    """Score each label that both maps have by its two masks, cropped to the box that holds both."""
    size = max(ids, default=0) + 2
    compact = [clip_ids(array, size).reshape(array.shape) for array in (a, b)]
    boxes = list(zip(*(find_objects(array, max_label=size - 1) for array in compact), strict=True))

    def score_label(i: int) -> Score:
        box = tuple(slice(min(p.start, q.start), max(p.stop, q.stop)) for p, q in zip(*boxes[i - 1], strict=True))
        return score(compact[0][box] == i, compact[1][box] == i)

    shared = [i for i in ids if None not in boxes[i - 1]]
    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(shared, pool.map(score_label, shared), strict=True))


def _distances(of: Mask, to: Mask, spacing: NDArray[np.float64]) -> NDArray[np.float64]:
    """The distance of each voxel of a mask from the nearest voxel of another, in the order of indices."""
    distances = np.zeros(np.count_nonzero(of))
    apart = ~to[of]
    if apart.any():
        # For points on a surface, a balanced tree takes longer to build than it saves in the search.
        tree = cKDTree(np.argwhere(to) * spacing, leafsize=32, compact_nodes=False, balanced_tree=False)
        distances[apart] = tree.query(np.argwhere(of & ~to) * spacing)[0]
    return distances


def _elements(inside: Mask) -> tuple[Mask, NDArray[np.float64]]:
    """A mask's surface elements, on the corners of its voxels (one more along each axis), and their areas."""
    padded = np.pad(inside, 1).view(np.uint8)
    codes = np.zeros([length + 1 for length in inside.shape], np.uint8)
    for bit, corner in enumerate(product((0, 1), repeat=3)):
        part = tuple(slice(start, start + length) for start, length in zip(corner, codes.shape, strict=True))
        codes |= padded[part] << bit
    surface = (codes != 0) & (codes != 255)
    return surface, element_areas()[codes[surface]]


@cache
def element_areas() -> NDArray[np.float64]:
    """The area (256,) of a surface element, as in marching cubes, by which of the voxels around it are in the label.

    Bit 4 z + 2 y + x of the index is the voxel at (z, y, x). A piece of more than half of the cube has the area of the
    rest of the cube.
    """
    corners = np.array(list(product((0, 1), repeat=3)))
    adjacent = np.abs(corners[:, None] - corners).sum(axis=-1) == 1
    areas = np.zeros(256)
    for code in range(256):
        inside = (code >> np.arange(8) & 1).astype(bool)
        if inside.sum() > 4:
            inside = ~inside
        pieces, count = label(inside.reshape(2, 2, 2))
        for piece in range(1, count + 1):
            members = np.flatnonzero(pieces.ravel() == piece)
            neighbours = adjacent[np.ix_(members, members)].sum(axis=1)
            areas[code] += _AREA_OF_PIECE[int((neighbours**2).sum())]
    return areas


def _percentile_of_area(distances: NDArray[np.float64], areas: NDArray[np.float64]) -> float:
    """The distance up to which elements make up 95 % of the area."""
    # Areas of equal distances are sorted too, so that sums are rounded as in the original.
    order = np.lexsort((areas, distances))
    reached = np.cumsum(areas[order]) / np.sum(areas[order])
    return float(distances[order][min(int(np.searchsorted(reached, 0.95)), len(order) - 1)])
