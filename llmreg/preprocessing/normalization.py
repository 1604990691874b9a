"""Intensity normalisation: the same code for preprocessing and prediction."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from llmreg.data.modalities import is_ct, is_mr
from llmreg.geometry.arrays import array_to_image, image_to_array, orient_to_lps
from llmreg.geometry.grid import Grid
from llmreg.plans.plan_settings import Normalization
from llmreg.preprocessing.foreground import Foreground, find_foreground

log = logging.getLogger(__name__)

# The paper's, for MR.
MR_PERCENTILES = (0.0, 95.0)
# For contrasts of which nothing is known: only outliers are clipped, since the brightest voxels may matter (PET).
SAFE_PERCENTILES = (0.5, 99.5)


def safe_default(modality: str) -> Normalization:
    """The normalisation of images of which only the name of their contrast is known."""
    lower, upper = MR_PERCENTILES if is_mr(modality) else SAFE_PERCENTILES
    return Normalization(modality=modality, scheme="percentiles", lower=lower, upper=upper)


def check_window(normalization: Normalization, image: sitk.Image) -> Normalization:
    """Return the plan itself, or the safe default where a window cannot be meant for the image's values."""
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
        normalization: its modality's plan.
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
    """Clip as planned and scale to [0, 1].

    Args:
        values: intensities (z, y, x).
        foreground: intensities of the image's foreground, 1-D; percentiles are computed over them.
        normalization: the modality's plan.
    """
    lower, upper = normalization.lower, normalization.upper
    if normalization.scheme == "percentiles":
        lower, upper = np.percentile(foreground, [lower, upper])
    scaled = np.subtract(values, np.float32(lower), dtype=np.float32)
    scaled *= np.float32(1 / max(upper - lower, 1e-6))
    return np.clip(scaled, 0, 1, out=scaled)
