"""Where a case lies, learned from the training labels.

Fields of view may lie so far apart that no image similarity between two contrasts finds the place. But the centroids of
the training cases' structures say how each of these cases lies to the others: a shift and an isotropic scale. The mean
image of a modality's cases, placed so, is its template; a case, a new one or one of the training, is placed where its
image correlates best with the template of its own modality, not too far from where bodies lay in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from llmreg.engine.prealignment import LARGEST_SCALE, CaseTransform, coarse
from llmreg.errors import UserError
from llmreg.files import read_json, write_json
from llmreg.geometry.field import resample_image
from llmreg.geometry.grid import Grid
from llmreg.geometry.io import array_to_image, image_to_array, read_image, write_image

TEMPLATE_MM = 8.0
RECORD_FILE = "templates.json"
# Bodies are tried in these sizes.
SCALES = (0.92, 1.0, 1.08)
# Overlap of image and template, of the smaller of the two.
LEAST_OVERLAP = 0.35
# What correlation a place must gain to lie one more standard deviation (squared) away from where bodies lay; of few
# cases, the deviation is not taken to be less than this many mm.
PRIOR_WEIGHT, LEAST_SPREAD_MM = 0.01, 15.0
_ROUNDS = 20
# Standard deviation, in coarse voxels, of the surroundings that a voxel is compared with; how little contrast is none.
_SURROUNDINGS, _FLAT = 4.0, 0.05

Point = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Example:
    """What a training case tells.

    Attributes:
        modality: its number.
        image: its :func:`view`.
        centre: the middle of its foreground, mm LPS.
        centroids: of its structures, mm LPS, by label.
    """

    modality: int
    image: sitk.Image
    centre: Point
    centroids: Mapping[int, Point]


@dataclass(frozen=True, eq=False)
class Template:
    """A modality's mean image in the common frame.

    Attributes:
        image: float32.
        seen: (z, y, x), the voxels that lie in some training case.
        centre: mean of the middles of the cases' foregrounds, mm LPS in the frame.
        spread: their standard deviation along each axis, mm.
    """

    image: sitk.Image
    seen: NDArray[np.bool_]
    centre: Point
    spread: Point


@dataclass(frozen=True, eq=False)
class Placement:
    """Case point -> frame point: x -> scale x + shift, mm LPS."""

    scale: float
    shift: Point

    def __call__(self, point: Point) -> Point:
        return self.scale * point + self.shift

    def case_transform(self, stage: str, score: float | None = None) -> CaseTransform:
        """The same as a pull-back, frame point -> case point."""
        return CaseTransform(np.eye(3) / self.scale, -self.shift / self.scale, stage, score)


def view(image: sitk.Image) -> sitk.Image:
    """What templates see of a normalised image: coarse, each voxel relative to its surroundings.

    Without that, the outline of the body outweighs what lies in it, and a field of view that cuts it misleads.
    """
    small = coarse(image, TEMPLATE_MM)
    values = image_to_array(small).astype(np.float64)
    mean = ndimage.gaussian_filter(values, _SURROUNDINGS)
    deviation = np.sqrt(ndimage.gaussian_filter((values - mean) ** 2, _SURROUNDINGS))
    contrast = ((values - mean) / (deviation + _FLAT)).astype(np.float32)
    return array_to_image(contrast, Grid.from_image(small))


def place_case(image: sitk.Image, centre: Point, template: Template) -> CaseTransform:
    """The transform of a normalised case, found with its modality's template."""
    placement, correlation = find_place(view(image), centre, template)
    return placement.case_transform("template", correlation)


def place_by_centroids(centroids: Sequence[Mapping[int, Point]]) -> list[Placement | None]:
    """Bring cases together by the centroids of the structures they share.

    Generalised Procrustes analysis (Gower 1975) without rotation: each case is fitted to the mean of all, and the mean
    taken again, often enough for it to settle. Scales have a geometric mean of 1; the frame's origin is arbitrary.

    Returns:
        A placement for each case, None where it shares no structure with the others.
    """
    # The case with the most structures is the first mean; the others come in as they share some with it.
    mean = dict(sorted(centroids, key=lambda own: -len(own))[0]) if centroids else {}
    fits: list[Placement | None] = []
    for _ in range(_ROUNDS):
        fits = [_fit(own, mean) for own in centroids]
        size = np.exp(np.mean([np.log(fit.scale) for fit in fits if fit is not None] or [0.0]))
        fits = [None if fit is None else Placement(fit.scale / size, fit.shift / size) for fit in fits]
        placed: dict[int, list[Point]] = {}
        for own, fit in zip(centroids, fits, strict=True):
            for label, point in own.items() if fit is not None else ():
                assert fit is not None
                placed.setdefault(label, []).append(fit(point))
        mean = {label: np.mean(points, axis=0) for label, points in placed.items()}
    return fits


def _fit(own: Mapping[int, Point], mean: Mapping[int, Point]) -> Placement | None:
    shared = sorted(own.keys() & mean.keys())
    if not shared:
        return None
    mine, theirs = (np.array([points[label] for label in shared]) for points in (own, mean))
    spread, wanted = (float(np.sqrt(((p - p.mean(axis=0)) ** 2).sum())) for p in (mine, theirs))
    # Of one structure only the place is known.
    scale = float(np.clip(wanted / spread, 1 / LARGEST_SCALE, LARGEST_SCALE)) if min(spread, wanted) > 0 else 1.0
    return Placement(scale, theirs.mean(axis=0) - scale * mine.mean(axis=0))


def place_examples(examples: Sequence[Example], fixed_modality: int, middle: Point) -> list[Placement | None]:
    """Where training cases lie in the frame, by their centroids; None for all where no fixed case has any.

    Args:
        examples: training cases.
        fixed_modality: its cases lie on average in the middle of the frame.
        middle: of the frame, mm LPS.
    """
    fits = place_by_centroids([example.centroids for example in examples])
    known = [(example, fit) for example, fit in zip(examples, fits, strict=True) if fit is not None]
    centres = [fit(example.centre) for example, fit in known if example.modality == fixed_modality]
    if not centres:
        return [None] * len(examples)
    move = middle - np.mean(centres, axis=0)
    return [None if fit is None else Placement(fit.scale, fit.shift + move) for fit in fits]


def in_one_frame(own: Sequence[Placement | None], common: Sequence[Placement | None]) -> list[Placement | None]:
    """The placements of some cases, moved and scaled as a whole to agree with other placements of the same cases.

    Templates that were learned from different cases then share one frame, so that cases placed by different ones can
    be registered to each other.
    """
    both = [(a, b) for a, b in zip(own, common, strict=True) if a is not None and b is not None]
    if not both:
        return list(own)
    scale = float(np.exp(np.mean([np.log(b.scale / a.scale) for a, b in both])))
    shift = np.mean([b.shift - scale * a.shift for a, b in both], axis=0)
    return [None if a is None else Placement(scale * a.scale, scale * a.shift + shift) for a in own]


def learn_templates(examples: Sequence[Example], places: Sequence[Placement | None]) -> dict[int, Template]:
    """The templates of the modalities that have examples with a place.

    Args:
        examples: training cases.
        places: where they lie in the frame.
    """
    known = [(example, fit) for example, fit in zip(examples, places, strict=True) if fit is not None]
    templates = {}
    for modality in sorted({example.modality for example, _ in known}):
        templates[modality] = _mean([(example, fit) for example, fit in known if example.modality == modality])
    return templates


def _mean(placed: Sequence[tuple[Example, Placement]]) -> Template:
    corners = [fit(corner) for example, fit in placed for corner in Grid.from_image(example.image).corners()]
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    grid = Grid.axis_aligned(np.ceil((high - low) / TEMPLATE_MM) + 1, (TEMPLATE_MM,) * 3, (low + high) / 2)
    total, weight = np.zeros(grid.shape), np.zeros(grid.shape)
    for example, fit in placed:
        transform = fit.case_transform("template").to_sitk()
        share = image_to_array(resample_image(_ones(Grid.from_image(example.image)), grid, transform))
        total += share * image_to_array(resample_image(example.image, grid, transform))
        weight += share
    mean = (total / np.maximum(weight, 1e-6)).astype(np.float32)
    centres = np.array([fit(example.centre) for example, fit in placed])
    return Template(array_to_image(mean, grid), weight > 0.5, centres.mean(axis=0), centres.std(axis=0))


def find_place(image: sitk.Image, centre: Point, template: Template) -> tuple[Placement, float]:
    """Where an image fits its modality's template best.

    The measure is the normalised cross-correlation of image and template where they overlap, at every shift by a
    template's voxel and some scales (Padfield, Masked object registration in the Fourier domain, 2012), less a penalty
    for lying far from where bodies lay in training.

    Args:
        image: a case's :func:`view`.
        centre: the middle of its foreground, mm LPS.
        template: of its modality.

    Returns:
        The place, and the correlation there.
    """
    grid, frame = Grid.from_image(image), Grid.from_image(template.image)
    spread = np.maximum(template.spread, LEAST_SPREAD_MM)
    best: tuple[float, float, Placement] | None = None
    for scale in SCALES:
        # A voxel of this grid is a template's voxel once the case is scaled.
        size = [max(2, round(n * s * scale / TEMPLATE_MM)) for n, s in zip(grid.size, grid.spacing, strict=True)]
        own = Grid.axis_aligned(size, (TEMPLATE_MM / scale,) * 3, grid.centre)
        correlation = _correlation(template, resample_image(image, own))
        # Entry k has the image's first voxel on the template's voxel k - (size - 1).
        first = np.stack(np.meshgrid(*map(np.arange, correlation.shape), indexing="ij")[::-1], axis=-1) - size + 1
        shifts = frame.index_to_physical(first) - scale * np.asarray(own.origin)
        away = (shifts + scale * centre - template.centre) / spread
        value = correlation - PRIOR_WEIGHT * (away**2).sum(axis=-1)
        at = np.unravel_index(int(value.argmax()), value.shape)
        if best is None or value[at] > best[0]:
            best = float(value[at]), float(correlation[at]), Placement(scale, shifts[at])
    assert best is not None
    return best[2], best[1]


def _correlation(template: Template, image: sitk.Image) -> NDArray[np.float64]:
    """At all shifts; -1 where image and template overlap too little, or the image is constant there."""
    seen = np.ascontiguousarray(template.seen, dtype=np.float32)
    fixed, moving = image_to_array(template.image), image_to_array(image)
    least = round(LEAST_OVERLAP * min(int(template.seen.sum()), moving.size))
    plain = [sitk.GetImageFromArray(array) for array in (fixed, moving, seen, np.ones_like(moving))]
    correlate = sitk.MaskedFFTNormalizedCorrelationImageFilter()
    correlate.SetRequiredNumberOfOverlappingPixels(least)
    # The same result every time, see the pre-alignment by mutual information.
    correlate.SetNumberOfThreads(1)
    found = correlate.Execute(*plain)
    # The filter leaves zeros where the overlap is too small.
    values = image_to_array(found).astype(np.float64)
    return np.where(values == 0, -1.0, values)


def _ones(grid: Grid) -> sitk.Image:
    return array_to_image(np.ones(grid.shape, np.float32), grid)


def write_templates(folder: Path, templates: Mapping[int, Template]) -> None:
    """One image a modality, and one of what it has seen, with ``templates.json`` written last."""
    record: dict[str, Any] = {}
    for modality, template in templates.items():
        write_image(template.image, folder / f"template_{modality:04d}.nii.gz")
        grid = Grid.from_image(template.image)
        write_image(array_to_image(template.seen.astype(np.uint8), grid), folder / f"seen_{modality:04d}.nii.gz")
        record[str(modality)] = {"centre": template.centre.tolist(), "spread": template.spread.tolist()}
    write_json(folder / RECORD_FILE, record)


def read_templates(folder: Path) -> dict[int, Template]:
    """Raises UserError when they are not there or damaged."""
    record = read_json(folder / RECORD_FILE)
    templates = {}
    try:
        for modality, row in record.items():
            image = sitk.Cast(read_image(folder / f"template_{int(modality):04d}.nii.gz"), sitk.sitkFloat32)
            seen = image_to_array(read_image(folder / f"seen_{int(modality):04d}.nii.gz")) > 0
            templates[int(modality)] = Template(image, seen, np.array(row["centre"]), np.array(row["spread"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / RECORD_FILE} is damaged ({error}): run llmreg_preprocess again.") from error
    return templates
