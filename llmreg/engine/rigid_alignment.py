"""Pre-alignment by mutual information with the reference case (Mattes et al. 2003): shifts, rigid, affine."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from llmreg.engine.prealignment import (
    PREALIGNMENTS,
    CaseToPlace,
    CaseTransform,
    PreAlignmentMethod,
    centre_transform,
)
from llmreg.geometry.grid import Grid
from llmreg.geometry.resampling import resample_image

log = logging.getLogger(__name__)

# Registration looks at the images this coarsely: enough for a pose, and a second or two a case.
COARSE_MM = 4.0
# Whether a stage helped is judged with fewer voxels, but with all of them.
JUDGED_MM = 6.0
HISTOGRAM_BINS = 32
# The optimiser samples so many voxels: more of them find the same pose more slowly.
SAMPLES = 12_000
# Steps that move the images by less do not matter to a network that deforms them further.
LEAST_STEP_MM = 0.02
# Least overlap, as a share of the smaller field of view: over a small overlap, anything may look alike.
LEAST_OVERLAP = 0.6
# A search tries shifts along the body up to SEARCH_MM. A shift counts as about as good as the best one when its score
# lacks less than the share AS_GOOD of the best one's lead over the median.
SEARCH_MM, SEARCH_STEP_MM, AS_GOOD = 160.0, 8.0, 0.2
# Lengths and volumes of people who lie in a scanner differ by less than these factors, and their axes turn by less than
# this. Without these limits, an image that shows a skull would make one without a skull grow.
LARGEST_SCALE = 1.3
LARGEST_GROWTH = 1.4
LARGEST_TURN = np.cos(np.deg2rad(25))


def place_by_similarity(case: CaseToPlace, methods: Sequence[str]) -> Iterator[CaseTransform]:
    """Yield the transforms of a case that raise its mutual information with the reference, one after the other.

    Args:
        case: the case; the reference case itself, and one without overlap with the reference, is centred.
        methods: what is tried after the centre, in this order: search, rigid, affine. The first of rigid and affine
            that does not help ends the sequence.
    """
    transform = centre_transform(case)
    if case.reference is None:
        yield transform
        return
    reference = _crop_to_field_of_view(case.reference)
    fixed, moving = coarse(reference, COARSE_MM), coarse(case.image, COARSE_MM)
    judged = coarse(reference, JUDGED_MM), coarse(case.image, JUDGED_MM)
    best = _similarity(*judged, transform)
    if not np.isfinite(best):
        yield transform
        return
    transform = replace(transform, score=best)
    yield transform
    for method in methods:
        if method == "search":
            candidate = _search_shifts(reference, case.image, transform)
            score = _similarity(*judged, candidate)
            if score > best:
                best, transform = score, replace(candidate, score=score)
            transform = replace(transform, uncertainty_mm=candidate.uncertainty_mm)
            yield transform
            continue
        start = _build_initial_transform(method, transform, case.frame.centre)
        try:
            candidate = CaseTransform.from_sitk(_optimise(fixed, moving, start), method)
        except RuntimeError as error:
            log.debug("pre-alignment stopped before %s: %s", method, error)
            return
        score = _similarity(*judged, candidate)
        overlap = _overlap(Grid.from_image(fixed), Grid.from_image(moving), candidate)
        if not _is_plausible(candidate) or overlap < LEAST_OVERLAP or score <= best:
            return
        best, transform = score, replace(candidate, score=score, uncertainty_mm=transform.uncertainty_mm)
        yield transform


def _crop_to_field_of_view(reference: sitk.Image) -> sitk.Image:
    """Crop the frame to what the reference case fills: the zeros outside its field of view are no anatomy."""
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(sitk.Cast(reference > 0, sitk.sitkUInt8))
    if not shape.HasLabel(1):
        return reference
    box = shape.GetBoundingBox(1)
    return sitk.RegionOfInterest(reference, box[3:], box[:3])


def _search_shifts(reference: sitk.Image, image: sitk.Image, start: CaseTransform) -> CaseTransform:
    """Find the shift along the body with the highest similarity, and how uncertain it is.

    Between two contrasts the most similar shift is often wrong. Other shifts that are about as good show that: their
    spread is the uncertainty.
    """
    fixed, moving = (coarse(volume, SEARCH_STEP_MM) for volume in (reference, image))
    fixed_grid, moving_grid = Grid.from_image(fixed), Grid.from_image(moving)
    shifts = {
        float(offset): replace(start, translation=start.translation + np.array([0, 0, offset]), stage="search")
        for offset in np.arange(-SEARCH_MM, SEARCH_MM + 1, SEARCH_STEP_MM)
    }
    scored = [
        (_similarity(fixed, moving, shifted), offset, shifted)
        for offset, shifted in shifts.items()
        if _overlap(fixed_grid, moving_grid, shifted) >= LEAST_OVERLAP
    ]
    candidates = [row for row in scored if np.isfinite(row[0])]
    if not candidates:
        return start
    scores, offsets = (np.array(column) for column in list(zip(*candidates, strict=True))[:2])
    good = offsets[scores >= scores.max() - AS_GOOD * (scores.max() - np.median(scores))]
    best = candidates[int(scores.argmax())][2]
    return replace(best, uncertainty_mm=float(max(np.abs(good - offsets[scores.argmax()]).max(), SEARCH_STEP_MM / 2)))


def _overlap(reference: Grid, image: Grid, transform: CaseTransform) -> float:
    """Share of the smaller field of view that lies in the other."""
    in_image = reference.points_inside() @ transform.matrix.T + transform.translation
    in_reference = np.linalg.solve(transform.matrix, (image.points_inside() - transform.translation).T).T
    return float(max(image.contains(in_image).mean(), reference.contains(in_reference).mean()))


def _build_initial_transform(method: str, start: CaseTransform, centre: NDArray[np.float64]) -> sitk.Transform:
    """Build the optimiser's first transform, about the frame's centre; ``rigid`` starts from a translation."""
    if method == "rigid":
        rigid = sitk.Euler3DTransform()
        rigid.SetCenter(centre.tolist())
        rigid.SetTranslation(start.translation.tolist())
        return rigid
    affine = sitk.AffineTransform(3)
    affine.SetCenter(centre.tolist())
    affine.SetMatrix(start.matrix.ravel().tolist())
    affine.SetTranslation((start.matrix @ centre + start.translation - centre).tolist())
    return affine


def coarse(image: sitk.Image, mm: float) -> sitk.Image:
    """The image, smoothed, with voxels of about ``mm`` along its own axes."""
    grid = Grid.from_image(image)
    size = [max(8, int(np.ceil(n * s / mm))) for n, s in zip(grid.size, grid.spacing, strict=True)]
    spacing = [n * s / m for n, s, m in zip(grid.size, grid.spacing, size, strict=True)]
    # Means of blocks that are finer than the result, so that the smoothing has fewer voxels to go through.
    blocks = [max(1, min(int(0.75 * mm / s), n // 4)) for n, s in zip(grid.size, grid.spacing, strict=True)]
    # The outermost voxels are repeated, so that the last blocks are whole and no part of the image is cut off.
    whole = sitk.ZeroFluxNeumannPad(image, [0, 0, 0], [-n % b for n, b in zip(grid.size, blocks, strict=True)])
    small = sitk.BinShrink(whole, blocks)
    smooth = sitk.SmoothingRecursiveGaussian(small, mm / 2)
    origin = grid.index_to_physical([(m / s - 1) / 2 for m, s in zip(spacing, grid.spacing, strict=True)])
    return resample_image(smooth, Grid(tuple(size), tuple(spacing), tuple(origin.tolist()), grid.direction))


def _registration() -> sitk.ImageRegistrationMethod:
    registration = sitk.ImageRegistrationMethod()
    # Threads add their sums in any order; a single thread gives the same transform every time.
    registration.SetNumberOfThreads(1)
    registration.SetNumberOfWorkUnits(1)
    registration.SetMetricAsMattesMutualInformation(HISTOGRAM_BINS)
    registration.SetInterpolator(sitk.sitkLinear)
    # Central differences at the sampled voxels replace smoothed gradients of whole images.
    registration.MetricUseFixedImageGradientFilterOff()
    registration.MetricUseMovingImageGradientFilterOff()
    return registration


def _similarity(fixed: sitk.Image, moving: sitk.Image, transform: CaseTransform) -> float:
    """Mutual information; minus infinity where it is undefined, without overlap or contrast."""
    registration = _registration()
    registration.SetMovingInitialTransform(transform.to_sitk())
    registration.SetInitialTransform(sitk.TranslationTransform(3))
    try:
        return -float(registration.MetricEvaluate(fixed, moving))
    except RuntimeError as error:
        log.debug("images cannot be compared: %s", error)
        return -np.inf


def _optimise(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform) -> sitk.Transform:
    registration = _registration()
    registration.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=LEAST_STEP_MM, numberOfIterations=60, gradientMagnitudeTolerance=1e-6
    )
    registration.SetOptimizerScalesFromPhysicalShift()
    registration.SetMetricSamplingStrategy(registration.REGULAR)
    shares = [min(1.0, SAMPLES * shrink**3 / fixed.GetNumberOfPixels()) for shrink in (4, 2, 1)]
    registration.SetMetricSamplingPercentagePerLevel(shares, seed=1)
    registration.SetShrinkFactorsPerLevel([4, 2, 1])
    registration.SetSmoothingSigmasPerLevel([2, 1, 0])
    registration.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    registration.SetInitialTransform(transform, inPlace=True)
    registration.Execute(fixed, moving)
    return transform


def _is_plausible(transform: CaseTransform) -> bool:
    left, scales, right = np.linalg.svd(transform.matrix)
    rotation, growth = left @ right, float(scales.prod())
    return bool(
        1 / LARGEST_SCALE < scales.min() <= scales.max() < LARGEST_SCALE
        and 1 / LARGEST_GROWTH < growth < LARGEST_GROWTH
        and np.diag(rotation).min() > LARGEST_TURN
    )


for _name, _methods, _summary in (
    ("search", ("search", "rigid"), "shifts along the body are tried first, then a rigid transform"),
    ("rigid", ("rigid",), "rotation and translation that raise mutual information with the reference case"),
    ("affine", ("rigid", "affine"), "rigid, then affine, each kept where it raises mutual information"),
):
    PREALIGNMENTS.register(_name, PreAlignmentMethod(_summary, partial(place_by_similarity, methods=_methods)))
