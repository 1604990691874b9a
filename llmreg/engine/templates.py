"""Templates: the mean image of each modality's training cases, by which other cases are placed in the common frame.

Fields of view may lie so far apart that no image similarity between two contrasts finds how the bodies lie. But the
centroids of the training cases' structures tell how these cases lie to each other: a shift and an isotropic scale. The
mean image of a modality's cases, after they are placed this way, is its template. A case, of the training or a new one,
is placed where its image correlates best with the template of its own modality, not too far from where bodies lay in
training.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from llmreg.engine.prealignment import (
    PREALIGNMENTS,
    CaseToPlace,
    CaseTransform,
    PreAlignmentMethod,
    Template,
    centre_transform,
)
from llmreg.engine.rigid_alignment import LARGEST_SCALE, coarsen
from llmreg.errors import UnreadableFile
from llmreg.files import read_json, write_json
from llmreg.geometry.grid import Grid, array_to_image, image_to_array
from llmreg.geometry.resampling import resample_image
from llmreg.images.formats import DEFAULT_ENDING
from llmreg.images.image_files import read_image, write_image

TEMPLATE_MM = 8.0
TEMPLATES_FILE = "templates.json"
# These sizes of the body, relative to the case's own, are tried.
SCALES = (0.92, 1.0, 1.08)
# The least overlap of image and template, as a share of the smaller of the two.
LEAST_TEMPLATE_OVERLAP = 0.35
# The correlation that a placement must gain to lie one more standard deviation (squared) away from where bodies lay in
# training. The deviation is taken to be at least LEAST_SPREAD_MM, since few cases may agree by chance.
PRIOR_WEIGHT, LEAST_SPREAD_MM = 0.01, 15.0
# A voxel is compared with its surroundings: the standard deviation of their weights in coarse voxels, and the contrast
# below which they count as flat.
_SURROUNDINGS, _FLAT = 4.0, 0.05

Point = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PlacementExample:
    """What a training case tells about where its modality lies.

    Attributes:
        modality: its number.
        image: its :func:`local_contrast`.
        centre: the middle of its foreground, mm LPS.
        centroids: of its structures, mm LPS, by label.
    """

    modality: int
    image: sitk.Image
    centre: Point
    centroids: Mapping[int, Point]


@dataclass(frozen=True, eq=False)
class Placement:
    """Case point -> frame point: x -> scale x + shift, mm LPS."""

    scale: float
    shift: Point

    def apply(self, point: Point) -> Point:
        """Carry a point of the case into the frame."""
        return self.scale * point + self.shift

    def case_transform(self, score: float | None = None) -> CaseTransform:
        """The inverse as a case transform, frame point -> case point, of a case whose correlation is ``score``."""
        return CaseTransform(np.eye(3) / self.scale, -self.shift / self.scale, "template", score)


def local_contrast(image: sitk.Image) -> sitk.Image:
    """A coarse version of a normalised image, in which each voxel is relative to its surroundings.

    In absolute intensities the outline of the body would outweigh its content, and a field of view that cuts the body
    would mislead the correlation.
    """
    small = coarsen(image, TEMPLATE_MM)
    values = image_to_array(small).astype(np.float64)
    mean = ndimage.gaussian_filter(values, _SURROUNDINGS)
    deviation = np.sqrt(ndimage.gaussian_filter((values - mean) ** 2, _SURROUNDINGS))
    return array_to_image(((values - mean) / (deviation + _FLAT)).astype(np.float32), Grid.from_image(small))


def place_by_template(case: CaseToPlace) -> Iterator[CaseTransform]:
    """Yield the transform with which the case fits its template; a contrast without a template is centred."""
    if case.template is None:
        yield centre_transform(case)
    else:
        placement, correlation = match_template(local_contrast(case.image), case.centre, case.template)
        yield placement.case_transform(correlation)


PREALIGNMENTS.register(
    "template",
    PreAlignmentMethod(
        "a case is placed where it fits the mean image of its modality's training cases best",
        place_by_template,
        uses_templates=True,
    ),
)


def place_by_centroids(centroids: Mapping[str, Mapping[int, Point]]) -> dict[str, Placement]:
    """Bring cases together by the centroids of the structures they share.

    Generalised Procrustes analysis (Gower 1975) without rotation: each case is fitted to the mean of all, and the mean
    taken again, often enough for it to settle. Scales have a geometric mean of 1; the frame's origin is arbitrary.

    Args:
        centroids: of each case's structures, mm LPS, by label.

    Returns:
        The placements of the cases that share a structure with the others.
    """
    # The case with the most structures is the first mean; others are fitted once they share a structure with the mean.
    mean: Mapping[int, Point] = max(centroids.values(), key=len, default={})
    fits: dict[str, Placement] = {}
    for _ in range(20):
        fits = {case: _fit_to_mean(points, mean) for case, points in centroids.items() if points.keys() & mean.keys()}
        size = np.exp(np.mean([np.log(fit.scale) for fit in fits.values()] or [0.0]))
        fits = {case: Placement(fit.scale / size, fit.shift / size) for case, fit in fits.items()}
        placed = [{label: fit.apply(point) for label, point in centroids[case].items()} for case, fit in fits.items()]
        mean = {
            label: np.mean([points[label] for points in placed if label in points], axis=0)
            for label in dict.fromkeys(chain.from_iterable(placed))
        }
    return fits


def _fit_to_mean(centroids: Mapping[int, Point], mean: Mapping[int, Point]) -> Placement:
    """Fit a case's centroids to those of the mean, with which it shares a structure, by least squares."""
    shared = sorted(centroids.keys() & mean.keys())
    source, target = (np.array([points[label] for label in shared]) for points in (centroids, mean))
    source_size, target_size = (float(np.sqrt(((p - p.mean(axis=0)) ** 2).sum())) for p in (source, target))
    # A single structure tells the shift but not the scale.
    ratio = target_size / source_size if min(source_size, target_size) > 0 else 1.0
    scale = float(np.clip(ratio, 1 / LARGEST_SCALE, LARGEST_SCALE))
    return Placement(scale, target.mean(axis=0) - scale * source.mean(axis=0))


def place_examples(
    examples: Mapping[str, PlacementExample], fixed_modality: int, middle: Point
) -> dict[str, Placement]:
    """Place training cases in the frame by their centroids.

    Args:
        examples: training cases, by name.
        fixed_modality: its cases lie on average in the middle of the frame.
        middle: of the frame, mm LPS.

    Returns:
        The placements of the cases that share a structure with the others; none where no case of the fixed modality
        does.
    """
    fits = place_by_centroids({case: example.centroids for case, example in examples.items()})
    centres = [
        fit.apply(examples[case].centre) for case, fit in fits.items() if examples[case].modality == fixed_modality
    ]
    if not centres:
        return {}
    move = middle - np.mean(centres, axis=0)
    return {case: Placement(fit.scale, fit.shift + move) for case, fit in fits.items()}


def align_placements(placements: Mapping[str, Placement], common: Mapping[str, Placement]) -> dict[str, Placement]:
    """Move and scale placements as a whole so that they agree with other placements of the same cases.

    Templates that were learned from different cases then share one frame, so that cases placed by different ones can
    be registered to each other.
    """
    shared = [(fit, common[case]) for case, fit in placements.items() if case in common]
    if not shared:
        return dict(placements)
    scale = float(np.exp(np.mean([np.log(b.scale / a.scale) for a, b in shared])))
    shift = np.mean([b.shift - scale * a.shift for a, b in shared], axis=0)
    return {case: Placement(scale * fit.scale, scale * fit.shift + shift) for case, fit in placements.items()}


def learn_templates(
    examples: Mapping[str, PlacementExample], placements: Mapping[str, Placement]
) -> dict[int, Template]:
    """Average the placed examples of each modality.

    Args:
        examples: training cases, by name.
        placements: where they lie in the frame; an example without one is not used.

    Returns:
        Templates by modality, of those that have an example with a placement.
    """
    placed = [(examples[case], fit) for case, fit in placements.items()]
    return {
        modality: _average([(example, fit) for example, fit in placed if example.modality == modality])
        for modality in sorted({example.modality for example, _ in placed})
    }


def _average(placed: Sequence[tuple[PlacementExample, Placement]]) -> Template:
    corners = [fit.apply(corner) for example, fit in placed for corner in Grid.from_image(example.image).corners()]
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    grid = Grid.from_centre(np.ceil((high - low) / TEMPLATE_MM) + 1, (TEMPLATE_MM,) * 3, (low + high) / 2)
    total, weight = np.zeros(grid.shape), np.zeros(grid.shape)
    for example, fit in placed:
        transform = fit.case_transform().to_sitk()
        inside = array_to_image(np.ones(example.image.GetSize()[::-1], np.float32), Grid.from_image(example.image))
        share = image_to_array(resample_image(inside, grid, transform))
        total += share * image_to_array(resample_image(example.image, grid, transform))
        weight += share
    mean = (total / np.maximum(weight, 1e-6)).astype(np.float32)
    centres = np.array([fit.apply(example.centre) for example, fit in placed])
    return Template(array_to_image(mean, grid), weight > 0.5, centres.mean(axis=0), centres.std(axis=0))


def match_template(image: sitk.Image, centre: Point, template: Template) -> tuple[Placement, float]:
    """Find the placement with which an image fits its modality's template best.

    The measure is the normalised cross-correlation of image and template where they overlap, for every shift by whole
    voxels of the template and some scales (Padfield, Masked object registration in the Fourier domain, 2012), less a
    penalty for lying far from where bodies lay in training.

    Args:
        image: a case's :func:`local_contrast`.
        centre: the middle of its foreground, mm LPS.
        template: of its modality.

    Returns:
        The placement and its correlation.
    """
    grid, frame = Grid.from_image(image), Grid.from_image(template.image)
    spread = np.maximum(template.spread, LEAST_SPREAD_MM)
    candidates = []
    for scale in SCALES:
        # A voxel of this grid becomes as large as a voxel of the template when the case is scaled.
        size = [max(2, round(n * s * scale / TEMPLATE_MM)) for n, s in zip(grid.size, grid.spacing, strict=True)]
        scaled = Grid.from_centre(size, (TEMPLATE_MM / scale,) * 3, grid.centre)
        correlation = _correlate(template, resample_image(image, scaled))
        # In entry k, the image's first voxel lies on the template's voxel k - (size - 1).
        first = np.stack(np.meshgrid(*map(np.arange, correlation.shape), indexing="ij")[::-1], axis=-1) - size + 1
        shifts = frame.index_to_physical(first) - scale * np.asarray(scaled.origin)
        deviation = (shifts + scale * centre - template.centre) / spread
        value = correlation - PRIOR_WEIGHT * (deviation**2).sum(axis=-1)
        index = np.unravel_index(int(value.argmax()), value.shape)
        candidates.append((float(value[index]), Placement(scale, shifts[index]), float(correlation[index])))
    return max(candidates, key=itemgetter(0))[1:]


def _correlate(template: Template, image: sitk.Image) -> NDArray[np.float64]:
    """Correlate at all shifts (z, y, x); -1 where image and template overlap too little or the image is constant."""
    seen = np.ascontiguousarray(template.seen, dtype=np.float32)
    fixed, moving = image_to_array(template.image), image_to_array(image)
    plain = [sitk.GetImageFromArray(array) for array in (fixed, moving, seen, np.ones_like(moving))]
    correlate = sitk.MaskedFFTNormalizedCorrelationImageFilter()
    correlate.SetRequiredNumberOfOverlappingPixels(
        round(LEAST_TEMPLATE_OVERLAP * min(int(template.seen.sum()), moving.size))
    )
    # As in the pre-alignment by mutual information, only a single thread gives the same result every time.
    correlate.SetNumberOfThreads(1)
    values = image_to_array(correlate.Execute(*plain)).astype(np.float64)
    # The filter leaves zeros where the overlap is too small.
    return np.where(values == 0, -1.0, values)


def write_templates(folder: Path, templates: Mapping[int, Template]) -> None:
    """Write an image and a mask of its field of view for each modality, and ``templates.json`` last."""
    for modality, template in templates.items():
        write_image(template.image, folder / f"template_{modality:04d}{DEFAULT_ENDING}")
        seen = array_to_image(template.seen.astype(np.uint8), Grid.from_image(template.image))
        write_image(seen, folder / f"seen_{modality:04d}{DEFAULT_ENDING}")
    record = {
        modality: {"centre": template.centre.tolist(), "spread": template.spread.tolist()}
        for modality, template in templates.items()
    }
    write_json(folder / TEMPLATES_FILE, record)


def read_templates(folder: Path) -> dict[int, Template]:
    """Read the templates of all modalities. Raises UserError when they are missing or damaged."""
    record = read_json(folder / TEMPLATES_FILE)
    templates = {}
    try:
        for modality, row in record.items():
            image = sitk.Cast(read_image(folder / f"template_{int(modality):04d}{DEFAULT_ENDING}"), sitk.sitkFloat32)
            seen = image_to_array(read_image(folder / f"seen_{int(modality):04d}{DEFAULT_ENDING}")) > 0
            templates[int(modality)] = Template(image, seen, np.array(row["centre"]), np.array(row["spread"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnreadableFile(
            folder / TEMPLATES_FILE, f"is damaged ({error})", "preprocess the dataset again"
        ) from error
    return templates
