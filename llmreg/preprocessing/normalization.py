"""Foreground and intensity normalisation: the same code for preprocessing and prediction."""

from __future__ import annotations

import logging
import re
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from llmreg.geometry.grid import Grid
from llmreg.geometry.io import array_of, image_from, oriented_lps
from llmreg.preprocessing.plans import Normalization

log = logging.getLogger(__name__)

AIR_HU = -500.0
# Contrast-enhanced, non-contrast, low-dose, cone-beam, fan-beam CT and CT angiography.
_CT = re.compile(r"(CE|NC|LD|CB|FB)?CTA?")
# A background of one constant value (skull-stripped or masked images) fills at least this share.
CONSTANT_BACKGROUND = 0.2


def is_ct(modality: str) -> bool:
    """Whether a modality's name says CT: ``CT``, ``ct_venous``, ``CECT``, ``CBCT``, ``CTA`` ...; not ``ACTH``."""
    return any(_CT.fullmatch(word) for word in re.split(r"[^A-Z]+", modality.upper()))


def foreground_mask(image: sitk.Image, ct: bool) -> NDArray[np.bool_]:
    """The body or organ, without air, from the image alone; (z, y, x).

    CT: above -500 HU. Images with a constant background: all else. Others: Li's minimum cross-entropy threshold. Then
    the largest connected component, its pinholes filled.
    """
    values = sitk.GetArrayViewFromImage(image)
    lowest = values.min()
    if ct and lowest < AIR_HU:
        mask = sitk.GetImageFromArray((values > AIR_HU).astype(np.uint8))
    elif (values == lowest).mean() > CONSTANT_BACKGROUND:
        mask = sitk.GetImageFromArray((values > lowest).astype(np.uint8))
    else:
        smooth = sitk.SmoothingRecursiveGaussian(sitk.Cast(image, sitk.sitkFloat32), min(image.GetSpacing()))
        mask = sitk.LiThreshold(smooth, 0, 1)
    opened = sitk.BinaryMorphologicalOpening(mask, [1, 1, 0])
    components = sitk.RelabelComponent(sitk.ConnectedComponent(opened), sortByObjectSize=True)
    largest = sitk.VotingBinaryIterativeHoleFilling(sitk.Equal(components, 1), [1, 1, 1], 1) > 0
    found = sitk.GetArrayFromImage(largest).astype(bool)
    return found if found.any() else np.ones_like(found)


def safe_default(modality: str) -> Normalization:
    """For images of which nothing is known but themselves."""
    return Normalization(modality=modality, scheme="percentiles", lower=0.0, upper=95.0)


def applicable(normalization: Normalization, image: sitk.Image) -> Normalization:
    """The plan itself, or the safe default where a HU window meets an image without a value below 0."""
    if normalization.scheme == "window" and np.asarray(sitk.GetArrayViewFromImage(image)).min() >= 0:
        log.warning(
            "A %s image holds no value below 0, so its values are not HU: its own percentiles are used.",
            normalization.modality,
        )
        return safe_default(normalization.modality)
    return normalization


def normalized(stored: sitk.Image, normalization: Normalization) -> tuple[sitk.Image, NDArray[np.bool_]]:
    """An image as read, along the LPS axes and in [0, 1], and its foreground (z, y, x)."""
    image = oriented_lps(stored)
    normalization = applicable(normalization, image)
    mask = foreground_mask(image, is_ct(normalization.modality))
    return image_from(normalize(array_of(image), mask, normalization), Grid.from_image(image)), mask


def normalize(values: NDArray[Any], mask: NDArray[np.bool_], normalization: Normalization) -> NDArray[np.float32]:
    """Clip as planned and scale to [0, 1].

    Args:
        values: intensities (z, y, x).
        mask: the image's foreground; percentiles are ranks among its voxels.
        normalization: the modality's plan.
    """
    lower, upper = normalization.lower, normalization.upper
    if normalization.scheme == "percentiles":
        lower, upper = np.percentile(values[mask], [lower, upper])
    scaled = (np.asarray(values, dtype=np.float32) - np.float32(lower)) / np.float32(max(upper - lower, 1e-6))
    return np.clip(scaled, 0, 1)
