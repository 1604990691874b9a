"""Smooth random values, as displacement fields and textures need them."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Smooth random values with a largest magnitude of 1."""
    noise = gaussian_filter(rng.standard_normal(shape), sigma, mode="nearest")
    return noise / np.abs(noise).max()
