"""A case's place in the common frame, found from its image alone.

The case transform maps points of the frame to points of the case (pull-back), so that the case in the frame is
``resample_image(case, frame, transform)``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from llmreg.geometry.field import chain_transforms, resample_image
from llmreg.geometry.grid import Grid
from llmreg.plans.plans import PreAlignment

log = logging.getLogger(__name__)

# Registration looks at the images this coarsely: enough for a pose, and a second or two a case.
COARSE_MM = 4.0
# Whether a stage helped is judged with fewer voxels, but all of them.
JUDGED_MM = 6.0
HISTOGRAM_BINS = 32
# Voxels that the optimiser looks at: more find the same pose more slowly.
SAMPLES = 12_000
# Steps that move the images by less do not matter to a network that deforms them further.
LEAST_STEP_MM = 0.02
# How much of the smaller field of view must overlap: over little of it, anything may look alike.
LEAST_OVERLAP = 0.6
# Shifts along the body that a search tries, and what share of the best one's lead over the median another may lack to
# count as about as good.
SEARCH_MM, SEARCH_STEP_MM, AS_GOOD = 160.0, 8.0, 0.2
# Plausible between people lying in a scanner: lengths and volumes differ by less than these factors, axes turn by less
# than this. Where one image shows what the other has not (a skull), similarity would have it grow.
LARGEST_SCALE = 1.3
LARGEST_GROWTH = 1.4
LARGEST_TURN = np.cos(np.deg2rad(25))


@dataclass(frozen=True, eq=False)
class CaseTransform:
    """Frame point -> case point, x -> matrix x + translation (mm, LPS), with the stage that found it.

    Attributes:
        matrix: (3, 3).
        translation: (3,).
        stage: identity, centre, search, rigid, affine, template, or given by the user.
        score: Mattes mutual information with the reference, or correlation with the template (higher is better); None
            when not compared.
        uncertainty_mm: how far along the body other places lie that look about as good; None where nobody searched.
    """

    matrix: NDArray[np.float64]
    translation: NDArray[np.float64]
    stage: str
    score: float | None = None
    uncertainty_mm: float | None = None

    @classmethod
    def from_sitk(cls, transform: sitk.Transform, stage: str, score: float | None = None) -> CaseTransform:
        origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
        columns = [np.array(transform.TransformPoint(tuple(axis))) - origin for axis in np.eye(3)]
        return cls(np.stack(columns, axis=1), origin, stage, score)

    def to_sitk(self) -> sitk.AffineTransform:
        return sitk.AffineTransform(self.matrix.ravel().tolist(), self.translation.tolist())

    def to_dict(self) -> dict[str, Any]:
        return {
            "matrix": self.matrix.tolist(),
            "translation": self.translation.tolist(),
            "stage": self.stage,
            "score": self.score,
            "uncertainty_mm": self.uncertainty_mm,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> CaseTransform:
        content = content | {key: np.array(content[key]) for key in ("matrix", "translation")}
        return cls(**content)


def between(fixed: CaseTransform, moving: CaseTransform) -> sitk.Transform:
    """The pre-alignment of a pair, fixed points -> moving points, from how its cases were placed."""
    affine = chain_transforms(fixed.to_sitk().GetInverse(), moving.to_sitk())
    return CaseTransform.from_sitk(affine, "prealignment").to_sitk()


def centre_transform(centre: NDArray[np.float64], frame: Grid) -> CaseTransform:
    """Move the frame's middle to the middle of the case's foreground (mm, LPS)."""
    return CaseTransform(np.eye(3), centre - frame.centre, "centre")


def align_case(
    image: sitk.Image,
    centre: NDArray[np.float64],
    frame: Grid,
    plan: PreAlignment,
    reference: sitk.Image | None,
) -> CaseTransform:
    """Find a case's transform: the last of its :func:`stages`."""
    *_, last = stages(image, centre, frame, plan, reference)
    return last


def stages(
    image: sitk.Image,
    centre: NDArray[np.float64],
    frame: Grid,
    plan: PreAlignment,
    reference: sitk.Image | None,
) -> Iterator[CaseTransform]:
    """The transforms of a case, one better than the other, up to the plan's method.

    Args:
        image: the normalised case, float32, its axes turned to the frame's as near as they can be.
        centre: the middle of its foreground, mm LPS.
        frame: the common frame.
        plan: which stages to try.
        reference: the normalised reference case in the frame; None for the reference case itself, which is centred.
    """
    if plan.method == "identity" or lies_in_frame(Grid.from_image(image), plan):
        yield CaseTransform(np.eye(3), np.zeros(3), "identity")
        return
    found = centre_transform(centre, frame)
    # Of a contrast without a template, the centre is the safest guess.
    if plan.method in ("centre", "template") or reference is None:
        yield found
        return
    reference = _shown(reference)
    fixed, moving = coarse(reference, COARSE_MM), coarse(image, COARSE_MM)
    judged = coarse(reference, JUDGED_MM), coarse(image, JUDGED_MM)
    best = _similarity(*judged, found)
    if not np.isfinite(best):
        yield found
        return
    found = replace(found, score=best)
    yield found
    if plan.method == "search":
        better = _searched(reference, image, found)
        score = _similarity(*judged, better)
        if score > best:
            best, found = score, replace(better, score=score)
        found = replace(found, uncertainty_mm=better.uncertainty_mm)
        yield found
    for stage in ("rigid", "affine") if plan.method == "affine" else ("rigid",):
        transform = _started(stage, found, frame.centre)
        try:
            better = CaseTransform.from_sitk(_optimised(fixed, moving, transform), stage)
        except RuntimeError as error:
            log.debug("pre-alignment stopped before %s: %s", stage, error)
            return
        score = _similarity(*judged, better)
        overlap = _overlap(Grid.from_image(fixed), Grid.from_image(moving), better)
        if not _plausible(better) or overlap < LEAST_OVERLAP or score <= best:
            return
        best, found = score, replace(better, score=score, uncertainty_mm=found.uncertainty_mm)
        yield found


def _shown(reference: sitk.Image) -> sitk.Image:
    """The part of the frame that the reference case fills: what lies outside its field of view is no anatomy."""
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(sitk.Cast(reference > 0, sitk.sitkUInt8))
    if not shape.HasLabel(1):
        return reference
    box = shape.GetBoundingBox(1)
    return sitk.RegionOfInterest(reference, box[3:], box[:3])


def _searched(reference: sitk.Image, image: sitk.Image, start: CaseTransform) -> CaseTransform:
    """The shift along the body at which the images look most alike, and how sure that is.

    Between two contrasts the best-looking place is often wrong, and shifts that look about as good say so: their spread
    is the uncertainty.
    """
    fixed, moving = (coarse(volume, SEARCH_STEP_MM) for volume in (reference, image))
    grid, other = Grid.from_image(fixed), Grid.from_image(moving)
    tried = []
    for offset in np.arange(-SEARCH_MM, SEARCH_MM + 1, SEARCH_STEP_MM):
        shifted = replace(start, translation=start.translation + np.array([0, 0, offset]), stage="search")
        if _overlap(grid, other, shifted) >= LEAST_OVERLAP:
            tried.append((_similarity(fixed, moving, shifted), float(offset), shifted))
    tried = [row for row in tried if np.isfinite(row[0])]
    if not tried:
        return start
    scores, offsets = (np.array(column) for column in list(zip(*tried, strict=True))[:2])
    good = offsets[scores >= scores.max() - AS_GOOD * (scores.max() - np.median(scores))]
    best = tried[int(scores.argmax())][2]
    return replace(best, uncertainty_mm=float(max(np.abs(good - offsets[scores.argmax()]).max(), SEARCH_STEP_MM / 2)))


def _overlap(reference: Grid, image: Grid, transform: CaseTransform) -> float:
    """Share of the smaller field of view that lies in the other."""
    there = reference.points_inside() @ transform.matrix.T + transform.translation
    back = np.linalg.solve(transform.matrix, (image.points_inside() - transform.translation).T).T
    return float(max(image.contains(there).mean(), reference.contains(back).mean()))


def lies_in_frame(grid: Grid, plan: PreAlignment) -> bool:
    """Whether a case with that grid, its axes turned, is one of those that the dataset has aligned already."""
    return plan.aligned_grid is not None and Grid.from_dict(plan.aligned_grid).same_as(grid)


def _started(stage: str, found: CaseTransform, centre: NDArray[np.float64]) -> sitk.Transform:
    """A transform about the frame's centre that does what was found so far; ``rigid`` starts from a translation."""
    if stage == "rigid":
        rigid = sitk.Euler3DTransform()
        rigid.SetCenter(centre.tolist())
        rigid.SetTranslation(found.translation.tolist())
        return rigid
    affine = sitk.AffineTransform(3)
    affine.SetCenter(centre.tolist())
    affine.SetMatrix(found.matrix.ravel().tolist())
    affine.SetTranslation((found.matrix @ centre + found.translation - centre).tolist())
    return affine


def coarse(image: sitk.Image, mm: float) -> sitk.Image:
    """The image, smoothed, with voxels of about ``mm`` along its own axes."""
    grid = Grid.from_image(image)
    size = [max(8, int(np.ceil(n * s / mm))) for n, s in zip(grid.size, grid.spacing, strict=True)]
    spacing = [n * s / m for n, s, m in zip(grid.size, grid.spacing, size, strict=True)]
    # Means of blocks that are finer than the result, so that the smoothing has fewer voxels to go through.
    blocks = [max(1, min(int(0.75 * mm / s), n // 4)) for n, s in zip(grid.size, grid.spacing, strict=True)]
    # The outermost voxels go on, so that the last blocks are whole and none of the image is cut off.
    whole = sitk.ZeroFluxNeumannPad(image, [0, 0, 0], [-n % b for n, b in zip(grid.size, blocks, strict=True)])
    small = sitk.BinShrink(whole, blocks)
    smooth = sitk.SmoothingRecursiveGaussian(small, mm / 2)
    origin = grid.index_to_physical([(m / s - 1) / 2 for m, s in zip(spacing, grid.spacing, strict=True)])
    return resample_image(smooth, Grid(tuple(size), tuple(spacing), tuple(origin.tolist()), grid.direction))


def _method() -> sitk.ImageRegistrationMethod:
    method = sitk.ImageRegistrationMethod()
    # Sums over threads arrive in any order; one thread gives the same transform every time.
    method.SetNumberOfThreads(1)
    method.SetNumberOfWorkUnits(1)
    method.SetMetricAsMattesMutualInformation(HISTOGRAM_BINS)
    method.SetInterpolator(sitk.sitkLinear)
    # Central differences where they are needed, instead of smoothed gradients of whole images.
    method.MetricUseFixedImageGradientFilterOff()
    method.MetricUseMovingImageGradientFilterOff()
    return method


def _similarity(fixed: sitk.Image, moving: sitk.Image, transform: CaseTransform) -> float:
    """Mutual information; minus infinity where there is none, without overlap or contrast."""
    method = _method()
    method.SetMovingInitialTransform(transform.to_sitk())
    method.SetInitialTransform(sitk.TranslationTransform(3))
    try:
        return -float(method.MetricEvaluate(fixed, moving))
    except RuntimeError as error:
        log.debug("images cannot be compared: %s", error)
        return -np.inf


def _optimised(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform) -> sitk.Transform:
    method = _method()
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=LEAST_STEP_MM, numberOfIterations=60, gradientMagnitudeTolerance=1e-6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetMetricSamplingStrategy(method.REGULAR)
    voxels = fixed.GetNumberOfPixels()
    shares = [min(1.0, SAMPLES * shrink**3 / voxels) for shrink in (4, 2, 1)]
    method.SetMetricSamplingPercentagePerLevel(shares, seed=1)
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(fixed, moving)
    return transform


def _plausible(transform: CaseTransform) -> bool:
    left, scales, right = np.linalg.svd(transform.matrix)
    rotation, growth = left @ right, float(scales.prod())
    return bool(
        1 / LARGEST_SCALE < scales.min() <= scales.max() < LARGEST_SCALE
        and 1 / LARGEST_GROWTH < growth < LARGEST_GROWTH
        and np.diag(rotation).min() > LARGEST_TURN
    )
