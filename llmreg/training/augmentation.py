"""Random changes of a training pair with batchgenerators: mirroring, small affine transforms, intensity."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from batchgenerators.augmentations.color_augmentations import (
    augment_brightness_multiplicative,
    augment_contrast,
    augment_gamma,
)
from batchgenerators.augmentations.noise_augmentations import augment_gaussian_noise
from batchgenerators.augmentations.spatial_transformations import augment_spatial
from numpy.typing import NDArray

from llmreg.plans.plan_settings import AugmentationSettings


@dataclass(frozen=True, eq=False)
class CaseArrays:
    """The arrays of a case on the grid of its pair, all of one shape (z, y, x).

    Attributes:
        image: float32 intensities in [0, 1].
        labels: integer ids; 0 everywhere where nothing is annotated.
        seen: uint8, 1 in the image's field of view.
    """

    image: NDArray[np.float32]
    labels: NDArray[Any]
    seen: NDArray[np.uint8]

    def __post_init__(self) -> None:
        shapes = {array.shape for array in vars(self).values()}
        if len(shapes) != 1 or self.image.ndim != 3:
            raise ValueError(f"expected arrays of one shape (z, y, x), got {sorted(shapes)}")


def augment_pair(
    fixed: CaseArrays, moving: CaseArrays, settings: AugmentationSettings, rng: np.random.Generator
) -> tuple[CaseArrays, CaseArrays]:
    """Return a randomly changed copy of a pair, fixed and moving; the same state of ``rng`` gives the same result.

    Images stay float32 in [0, 1]. Label maps keep their type, are resampled by nearest neighbour, and are zero where a
    transform leads outside. The arrays that are given are not written to, but may be returned.
    """
    # batchgenerators draws from NumPy's global generator.
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(int(rng.integers(2**32)))  # noqa: NPY002
    try:
        transformed = [_transform(case, settings, rng) for case in (fixed, moving)]
        changed = [_change_intensity(case, settings, rng) for case in transformed]
        axes = tuple(
            axis
            for axis, name in enumerate("zyx")
            if name in settings.mirror_axes and np.random.uniform() < 0.5  # noqa: NPY002
        )
        fixed, moving = (
            CaseArrays(np.flip(case.image, axes), np.flip(case.labels, axes), np.flip(case.seen, axes))
            for case in changed
        )
        return fixed, moving
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _transform(case: CaseArrays, settings: AugmentationSettings, rng: np.random.Generator) -> CaseArrays:
    """Transform an image (linear) and its maps (nearest) by one random rotation, scale and translation."""
    if rng.random() >= settings.spatial_probability:
        return case
    angle = (-np.deg2rad(settings.rotation), np.deg2rad(settings.rotation))
    image, maps = augment_spatial(
        case.image[None, None],
        np.stack((case.labels, case.seen))[None],
        case.image.shape,
        # A crop of full size whose centre varies amounts to a translation.
        random_crop=True,
        patch_center_dist_from_border=[length / 2 - settings.translation for length in case.image.shape],
        do_elastic_deform=False,
        angle_x=angle,
        angle_y=angle,
        angle_z=angle,
        scale=settings.scale,
        order_data=1,
        border_mode_data="constant",
        order_seg=0,
        border_mode_seg="constant",
    )
    # The maps come back as float32, which is exact up to 2^24.
    return CaseArrays(image[0, 0], maps[0, 0].astype(case.labels.dtype), maps[0, 1].astype(case.seen.dtype))


def _change_intensity(case: CaseArrays, settings: AugmentationSettings, rng: np.random.Generator) -> CaseArrays:
    gamma, brightness, contrast, noise = rng.random(4) < settings.intensity_probability
    if not (gamma or brightness or contrast or noise):
        return case
    data = case.image[None].copy()
    if gamma:
        data = augment_gamma(data, settings.gamma)
    if brightness:
        data = augment_brightness_multiplicative(data, settings.brightness)
    if contrast:
        data = augment_contrast(data, settings.contrast)
    if noise:
        # The level is drawn here, because batchgenerators would draw it from Python's own generator. What it calls a
        # variance is used as a standard deviation.
        data = augment_gaussian_noise(data, (rng.uniform(*settings.noise),) * 2)
    return replace(case, image=np.clip(data[0], 0.0, 1.0, dtype=np.float32))
