"""Bringing an image into the common frame: foreground, normalisation, placement; for preprocessing and prediction."""

import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from llmreg.engine.prealignment import CaseToPlace, CaseTransform, Template, align_case
from llmreg.errors import BadImage, UnreadableFile
from llmreg.geometry.grid import Grid, array_to_image, image_to_array, orient_to_lps
from llmreg.geometry.resampling import ones_on, resample_image
from llmreg.images.formats import DEFAULT_ENDING
from llmreg.images.image_files import read_image
from llmreg.plans.plan_settings import Normalization
from llmreg.plans.plans import Plans

log = logging.getLogger(__name__)

# The prefixes mean contrast-enhanced, non-contrast, low-dose, cone-beam, fan-beam, high-resolution, multidetector and
# 4-D; CTA is angiography.
_CT = re.compile(r"(CE|NC|LD|CB|FB|HR|MD|4D)?CTA?")
# Magnetic resonance is named by itself or by its usual sequences, with what is written next to them: T1w, T2FLAIR.
_MR = re.compile(
    r"(CE|F)?(MR[IA]?|T[12](W|C|CE|GD|WI|STAR|FS|SPIR|FLAIR)?|FLAIR|PDW?|DWI|ADC|SWI|DCE|MPRAGE|BSSFP|TRUFISP)"
)


def is_ct(modality: str) -> bool:
    """Whether a modality's name says CT: ``CT``, ``ct_venous``, ``CECT``, ``CBCT``, ``CTA`` ...; not ``ACTH``."""
    return any(_CT.fullmatch(word) for word in _words(modality))


def is_mr(modality: str) -> bool:
    """Whether a modality's name says magnetic resonance: ``MR``, ``T1``, ``T2 FLAIR``, ``mri_dce`` ..."""
    return not is_ct(modality) and any(_MR.fullmatch(word) for word in _words(modality))


def _words(modality: str) -> list[str]:
    return re.split(r"[^A-Z0-9]+", modality.upper()) + re.split(r"[^A-Z]+", modality.upper())


AIR_HU = -500.0
# A background of one constant value (skull-stripped or masked images) fills at least this share.
CONSTANT_BACKGROUND = 0.2
# The foreground is computed in voxels of about this length, which is at least 16 times faster on 512^2 slices.
FOREGROUND_MM = 3.0
# A scanner's table, where it touches the body, is thinner than this.
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
        centre: middle of the mask's bounding box, mm LPS.
        extent: edge lengths of that box along the LPS axes, mm, also where the grid is oblique.
    """

    mask: NDArray[np.bool_]
    grid: Grid
    intensities: NDArray[Any]
    centre: NDArray[np.float64]
    extent: NDArray[np.float64]


def find_foreground(image: sitk.Image, *, ct: bool, mask: sitk.Image | None = None) -> Foreground:
    """Find the foreground from the image alone, unless the user gives a mask.

    In CT it lies above -500 HU, without parts thinner than a table. In images with a constant background it is the
    rest. In others it lies above Li's minimum cross-entropy threshold (Li and Lee 1993). Of these voxels, the largest
    connected component and others of a similar size are kept, and pinholes are filled.

    Args:
        image: a scalar image along the LPS axes (see :func:`llmreg.geometry.grid.orient_to_lps`).
        ct: whether its values are Hounsfield units.
        mask: the user's foreground on the stored image's grid, above 0; an empty one is not used.
    """
    # At least four voxels are left along each axis, as smoothing needs.
    factors = [
        max(1, min(int(FOREGROUND_MM / s), n // 4)) for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)
    ]
    small = sitk.Shrink(image, factors)
    values = image_to_array(small)
    inside = None if mask is None else image_to_array(sitk.Shrink(orient_to_lps(mask), factors)) > 0
    if inside is None or not inside.any():
        inside = _segment(small, values, ct=ct)
    grid = Grid.from_image(small)
    points = grid.index_to_physical(np.argwhere(inside)[:, ::-1])
    low, high = points.min(axis=0), points.max(axis=0)
    return Foreground(
        inside, grid, values[inside], centre=(low + high) / 2, extent=high - low + np.abs(grid.matrix).sum(axis=1)
    )


def _segment(image: sitk.Image, values: NDArray[Any], *, ct: bool) -> NDArray[np.bool_]:
    lowest, radius = values.min(), 1
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
    num_parts = int((sizes >= LEAST_PART * sizes.max(initial=1)).sum())
    filled = (
        sitk.VotingBinaryIterativeHoleFilling(sitk.BinaryThreshold(components, 1, max(num_parts, 1)), [1, 1, 1], 1) > 0
    )
    inside = image_to_array(filled).astype(bool)
    return inside if inside.any() else np.ones_like(inside)


def safe_default(modality: str) -> Normalization:
    """The normalisation of images when only the name of their contrast is known."""
    # MR gets the paper's percentiles. In unknown contrasts only outliers are clipped, since the brightest voxels may
    # matter (PET).
    lower, upper = (0.0, 95.0) if is_mr(modality) else (0.5, 99.5)
    return Normalization(modality=modality, scheme="percentiles", lower=lower, upper=upper)


def check_window(normalization: Normalization, image: sitk.Image) -> Normalization:
    """Return the normalisation itself, or the safe default when its window cannot fit the image's values."""
    if normalization.scheme != "window":
        return normalization
    values = np.asarray(sitk.GetArrayViewFromImage(image))
    if normalization.lower < -1 and values.min() >= 0:
        problem = "holds no value below 0, so its values are not HU"
    elif normalization.upper <= 1 and values.max() > 2:
        problem = f"holds values up to {values.max():g}, so it is not normalised as the training images were"
    else:
        return normalization
    log.warning("A %s image %s: its own percentiles are used.", normalization.modality, problem)
    return safe_default(normalization.modality)


def normalize_image(
    stored: sitk.Image, normalization: Normalization, mask: sitk.Image | None = None
) -> tuple[sitk.Image, Foreground]:
    """Turn an image's axes to LPS and scale its intensities to [0, 1].

    Args:
        stored: the image as read.
        normalization: that of its modality.
        mask: the user's foreground on the stored grid, instead of one that is estimated from the image.

    Returns:
        The normalised image, float32, and its foreground.
    """
    image = orient_to_lps(stored)
    normalization = check_window(normalization, image)
    foreground = find_foreground(image, ct=is_ct(normalization.modality), mask=mask)
    values = normalize(image_to_array(image), foreground.intensities, normalization)
    return array_to_image(values, Grid.from_image(image)), foreground


def normalize(values: NDArray[Any], foreground: NDArray[Any], normalization: Normalization) -> NDArray[np.float32]:
    """Clip an image's values and scale them to [0, 1].

    Args:
        values: intensities (z, y, x).
        foreground: intensities of the image's foreground, 1-D; percentiles are computed over them.
        normalization: that of the modality.
    """
    lower, upper = normalization.lower, normalization.upper
    if normalization.scheme == "percentiles":
        lower, upper = np.percentile(foreground, [lower, upper])
    scaled = np.subtract(values, np.float32(lower), dtype=np.float32)
    scaled *= np.float32(1 / max(upper - lower, 1e-6))
    return np.clip(scaled, 0, 1, out=scaled)


REFERENCE_FILE = f"reference{DEFAULT_ENDING}"


@dataclass(frozen=True, eq=False)
class FramedCase:
    """A case in the common frame.

    Attributes:
        image: float32 in [0, 1], (z, y, x) on the frame.
        seen: bool, (z, y, x): which voxels lie in the case's field of view.
        transform: frame point -> case point.
    """

    image: NDArray[np.float32]
    seen: NDArray[np.bool_]
    transform: CaseTransform


def bring_into_frame(
    stored: sitk.Image,
    normalization: Normalization,
    plans: Plans,
    name: Path | str,
    *,
    reference: sitk.Image | None = None,
    template: Template | None = None,
    mask: sitk.Image | None = None,
    transform: CaseTransform | None = None,
) -> FramedCase:
    """Normalise an image and bring it into the frame.

    Args:
        stored: the image as read.
        normalization: that of its modality.
        plans: the dataset's plans.
        name: the image's file, or another name for error messages.
        reference: the reference case in the frame (see :func:`read_reference`); None for that case itself.
        template: of the case's modality, where the plans' pre-alignment uses templates.
        mask: the user's foreground on the image's grid, instead of one that is estimated from the image.
        transform: the case transform itself, where the user knows it.

    Raises:
        BadImage: nothing of the image lies in the frame.
    """
    normalized, foreground = normalize_image(stored, normalization, mask)
    transform = transform or align_case(
        CaseToPlace(normalized, foreground.centre, plans.frame, reference, template), plans.prealignment
    )
    framed = resample_image(normalized, plans.frame, transform.to_sitk())
    # The axes of the normalised image are turned, which changes nothing about its field of view.
    field_of_view = ones_on(Grid.from_image(normalized))
    seen = image_to_array(resample_image(field_of_view, plans.frame, transform.to_sitk(), "nearest")) > 0
    if not seen.any():
        raise BadImage(
            name,
            "has no part in the common frame of the plans",
            "check its position in space, or plan with another prealignment.method",
        )
    return FramedCase(image_to_array(framed), seen, transform)


def read_reference(folder: Path, plans: Plans) -> sitk.Image:
    """Read the reference case in the frame from a folder of volumes or a model folder.

    Raises:
        UnreadableFile: it does not lie on the plans' frame.
    """
    path = folder / REFERENCE_FILE
    image = sitk.Cast(read_image(path), sitk.sitkFloat32)
    if not Grid.from_image(image).same_as(plans.frame, tolerance=0.1):
        raise UnreadableFile(path, "does not lie in the plans' frame", "preprocess the dataset again")
    return image
