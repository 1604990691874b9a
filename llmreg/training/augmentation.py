"""Random changes of a training pair with batchgenerators: mirroring, small affine transforms, intensity."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from batchgenerators.augmentations.color_augmentations import (
    augment_brightness_multiplicative,
    augment_contrast,
    augment_gamma,
)
from batchgenerators.augmentations.noise_augmentations import augment_gaussian_noise
from batchgenerators.augmentations.spatial_transformations import augment_mirroring, augment_spatial
from numpy.typing import NDArray

from llmreg.plans.plan_settings import AugmentationSettings


@dataclass(frozen=True, eq=False)
class PairArrays:
    """The arrays of a pair on its common grid, all of one shape (z, y, x).

    Attributes:
        fixed: float32 intensities in [0, 1].
        moving: float32 intensities in [0, 1].
        fixed_labels: integer ids, or None.
        moving_labels: integer ids, or None.
        fixed_seen: uint8, 1 in the image's field of view; None when that is the whole array.
        moving_seen: the same for the moving image.
    """

    fixed: NDArray[np.float32]
    moving: NDArray[np.float32]
    fixed_labels: NDArray[Any] | None = None
    moving_labels: NDArray[Any] | None = None
    fixed_seen: NDArray[np.uint8] | None = None
    moving_seen: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        shapes = {array.shape for array in vars(self).values() if array is not None}
        if len(shapes) != 1 or self.fixed.ndim != 3:
            raise ValueError(f"expected arrays of one shape (z, y, x), got {sorted(shapes)}")


def augment_pair(sample: PairArrays, settings: AugmentationSettings, rng: np.random.Generator) -> PairArrays:
    """Return a randomly changed copy of a pair; the same state of ``rng`` gives the same result.

    Images stay float32 in [0, 1]. Label maps keep their type, are resampled by nearest neighbour, and are zero where a
    transform leads outside. The arrays of ``sample`` are not written to, but may be returned.
    """
    # batchgenerators draws from NumPy's global generator.
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(int(rng.integers(2**32)))  # noqa: NPY002
    try:
        fixed, *fixed_maps = _transform(sample.fixed, (sample.fixed_labels, sample.fixed_seen), settings, rng)
        moving, *moving_maps = _transform(sample.moving, (sample.moving_labels, sample.moving_seen), settings, rng)
        fixed = _change_intensity(fixed, settings, rng)
        moving = _change_intensity(moving, settings, rng)
        labels, seen = zip(fixed_maps, moving_maps, strict=True)
        return _mirror(PairArrays(fixed, moving, *labels, *seen), settings)
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _transform(
    image: NDArray[np.float32],
    maps: Sequence[NDArray[Any] | None],
    settings: AugmentationSettings,
    rng: np.random.Generator,
) -> tuple[Any, ...]:
    """Transform an image (linear) and its maps (nearest) by one random rotation, scale and translation."""
    if rng.random() >= settings.spatial_probability:
        return image, *maps
    angle = (-np.deg2rad(settings.rotation), np.deg2rad(settings.rotation))
    present = [array for array in maps if array is not None]
    transformed, transformed_maps = augment_spatial(
        image[None, None],
        np.stack(present)[None] if present else None,
        image.shape,
        # A crop of the full size whose centre varies is a translation.
        random_crop=True,
        patch_center_dist_from_border=[length / 2 - settings.translation for length in image.shape],
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
    results = iter(transformed_maps[0] if present else ())
    return transformed[0, 0], *(None if array is None else next(results).astype(array.dtype) for array in maps)


def _change_intensity(
    image: NDArray[np.float32], settings: AugmentationSettings, rng: np.random.Generator
) -> NDArray[np.float32]:
    gamma, brightness, contrast, noise = rng.random(4) < settings.intensity_probability
    if not (gamma or brightness or contrast or noise):
        return image
    data = image[None].copy()
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
    result: NDArray[np.float32] = np.clip(data[0], 0.0, 1.0, dtype=np.float32)
    return result


def _mirror(sample: PairArrays, settings: AugmentationSettings) -> PairArrays:
    axes = tuple("zyx".index(name) for name in settings.mirror_axes)
    if not axes:
        return sample
    images = np.stack((sample.fixed, sample.moving))
    maps = {key: array for key, array in vars(sample).items() if key not in ("fixed", "moving") and array is not None}
    images, mirrored = augment_mirroring(images, np.stack(list(maps.values())) if maps else None, axes)
    # Stacked maps have the widest of their types.
    results = zip(maps, mirrored if maps else (), strict=True)
    return PairArrays(images[0], images[1], **{key: array.astype(maps[key].dtype) for key, array in results})
