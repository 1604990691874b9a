"""Pre-alignment by mutual information with the reference case (Mattes et al. 2003): shifts, rigid, affine."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from llmreg.engine.prealignment import (
    PREALIGNMENTS,
    CaseToPlace,
    CaseTransform,
    PreAlignmentMethod,
    centre_transform,
)
from llmreg.geometry.grid import Grid, image_to_array
from llmreg.geometry.resampling import resample_image

log = logging.getLogger(__name__)

# Images are registered in voxels of this size, which is enough for a pose and takes a second or two a case.
ALIGNMENT_MM = 4.0
# Stages are judged on coarser voxels than they are optimised on, but on all of them.
JUDGED_MM = 6.0
# The optimiser samples this many voxels. With more of them it finds the same pose, but more slowly.
SAMPLES = 12_000
# The least overlap, as a share of the smaller field of view. Over a small overlap, anything may look alike.
LEAST_SEEN_OVERLAP = 0.6
# A search tries shifts along the body up to SEARCH_MM. A shift counts as about as good as the best one when its score
# lacks less than the share AS_GOOD of the best one's lead over the median.
SEARCH_MM, SEARCH_STEP_MM, AS_GOOD = 160.0, 8.0, 0.2
# Lengths and volumes of people who lie in a scanner differ by less than these factors, and their axes turn by less than
# this. Without these limits, an image that shows a skull would make one without a skull grow.
LARGEST_SCALE = 1.3
LARGEST_GROWTH = 1.4
LARGEST_TURN = np.cos(np.deg2rad(25))


def place_by_similarity(case: CaseToPlace, methods: Sequence[str]) -> Iterator[CaseTransform]:
    """Yield transforms of a case, each with a higher mutual information with the reference than the one before.

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
    fixed, moving = coarsen(reference, ALIGNMENT_MM), coarsen(case.image, ALIGNMENT_MM)
    judged = coarsen(reference, JUDGED_MM), coarsen(case.image, JUDGED_MM)
    best = _similarity(*judged, transform)
    if not np.isfinite(best):
        yield transform
        return
    transform = replace(transform, score=best)
    yield transform
    for method in methods:
        if method == "search":
            candidate = _search_shifts(reference, case.image, transform)
            transform = replace(transform, uncertainty_mm=candidate.uncertainty_mm)
        else:
            start = _build_initial_transform(method, transform, case.frame.centre)
            try:
                candidate = CaseTransform.from_sitk(_optimise(fixed, moving, start), method)
            except RuntimeError as error:
                log.debug("pre-alignment stopped before %s: %s", method, error)
                return
            if not _is_plausible(candidate) or _overlap(fixed, moving, candidate) < LEAST_SEEN_OVERLAP:
                return
        score = _similarity(*judged, candidate)
        if score > best:
            best, transform = score, replace(candidate, score=score, uncertainty_mm=transform.uncertainty_mm)
        elif method != "search":
            return
        yield transform


def _crop_to_field_of_view(reference: sitk.Image) -> sitk.Image:
    """Crop the frame to what the reference case fills: the zeros outside its field of view are no anatomy."""
    boxes = ndimage.find_objects(image_to_array(reference > 0))
    return reference[boxes[0][::-1]] if boxes else reference


def _search_shifts(reference: sitk.Image, image: sitk.Image, start: CaseTransform) -> CaseTransform:
    """Find the shift along the body with the highest similarity, and how uncertain it is.

    Between two contrasts the most similar shift is often wrong. Other shifts that are about as good show that: their
    spread is the uncertainty.
    """
    fixed, moving = (coarsen(volume, SEARCH_STEP_MM) for volume in (reference, image))
    offsets = np.arange(-SEARCH_MM, SEARCH_MM + 1, SEARCH_STEP_MM)
    shifts = [
        replace(start, translation=start.translation + np.array([0, 0, offset]), stage="search") for offset in offsets
    ]
    scores = np.array(
        [
            _similarity(fixed, moving, shift) if _overlap(fixed, moving, shift) >= LEAST_SEEN_OVERLAP else -np.inf
            for shift in shifts
        ]
    )
    best = int(scores.argmax())
    if not np.isfinite(scores[best]):
        return start
    lead = scores[best] - np.median(scores[np.isfinite(scores)])
    good = offsets[scores >= scores[best] - AS_GOOD * lead]
    return replace(shifts[best], uncertainty_mm=float(max(np.abs(good - offsets[best]).max(), SEARCH_STEP_MM / 2)))


def _overlap(reference: sitk.Image, image: sitk.Image, transform: CaseTransform) -> float:
    """Share of the smaller field of view that lies in the other."""
    reference_grid, image_grid = Grid.from_image(reference), Grid.from_image(image)
    in_image = reference_grid.points_inside() @ transform.matrix.T + transform.translation
    in_reference = np.linalg.solve(transform.matrix, (image_grid.points_inside() - transform.translation).T).T
    return float(max(image_grid.contains(in_image).mean(), reference_grid.contains(in_reference).mean()))


def _build_initial_transform(method: str, start: CaseTransform, centre: NDArray[np.float64]) -> sitk.Transform:
    """Build the optimiser's first transform, about the frame's centre; ``rigid`` starts from a translation."""
    is_rigid = method == "rigid"
    transform = sitk.Euler3DTransform() if is_rigid else sitk.AffineTransform(3)
    transform.SetCenter(centre.tolist())
    transform.SetMatrix(start.matrix.ravel().tolist())
    shift = start.translation if is_rigid else start.matrix @ centre + start.translation - centre
    transform.SetTranslation(shift.tolist())
    return transform


def coarsen(image: sitk.Image, mm: float) -> sitk.Image:
    """Smooth an image and resample it to voxels of about ``mm`` along its own axes."""
    grid = Grid.from_image(image)
    size = [max(8, int(np.ceil(n * s / mm))) for n, s in zip(grid.size, grid.spacing, strict=True)]
    spacing = [n * s / m for n, s, m in zip(grid.size, grid.spacing, size, strict=True)]
    # Means are taken over blocks that are finer than the result, so that fewer voxels have to be smoothed.
    blocks = [max(1, min(int(0.75 * mm / s), n // 4)) for n, s in zip(grid.size, grid.spacing, strict=True)]
    # The outermost voxels are repeated, so that the last blocks are whole and no part of the image is cut off.
    padded = sitk.ZeroFluxNeumannPad(image, [0, 0, 0], [-n % b for n, b in zip(grid.size, blocks, strict=True)])
    smooth = sitk.SmoothingRecursiveGaussian(sitk.BinShrink(padded, blocks), mm / 2)
    origin = grid.index_to_physical([(m / s - 1) / 2 for m, s in zip(spacing, grid.spacing, strict=True)])
    return resample_image(smooth, Grid(tuple(size), tuple(spacing), tuple(origin.tolist()), grid.direction))


def _registration() -> sitk.ImageRegistrationMethod:
    registration = sitk.ImageRegistrationMethod()
    # Threads add their sums in any order, so only a single thread gives the same transform every time.
    registration.SetNumberOfThreads(1)
    registration.SetNumberOfWorkUnits(1)
    registration.SetMetricAsMattesMutualInformation(numberOfHistogramBins=32)
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
    # Steps that move the images by less (mm) do not matter to a network that deforms them further.
    registration.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=0.02, numberOfIterations=60, gradientMagnitudeTolerance=1e-6
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
    return bool(
        1 / LARGEST_SCALE < scales.min() <= scales.max() < LARGEST_SCALE
        and 1 / LARGEST_GROWTH < scales.prod() < LARGEST_GROWTH
        and np.diag(left @ right).min() > LARGEST_TURN
    )


for _name, _methods, _summary in (
    ("search", ("search", "rigid"), "shifts along the body are tried first, then a rigid transform"),
    ("rigid", ("rigid",), "rotation and translation that raise mutual information with the reference case"),
    ("affine", ("rigid", "affine"), "rigid, then affine, each kept where it raises mutual information"),
):
    PREALIGNMENTS.register(_name, PreAlignmentMethod(_summary, partial(place_by_similarity, methods=_methods)))
