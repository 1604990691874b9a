from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import ndimage

from llmreg.training.augmentation import AugmentationSettings, PairArrays, augment_pair

SHAPE = (14, 20, 16)
NOTHING = AugmentationSettings(spatial_probability=0.0, intensity_probability=0.0)
EVERYTHING = AugmentationSettings(mirror_axes=("x", "y", "z"), spatial_probability=1.0, intensity_probability=1.0)


def make_pair(seed: int = 0, dtype: type[np.integer] = np.uint8) -> PairArrays:
    rng = np.random.default_rng(seed)
    images = [np.clip(ndimage.gaussian_filter(rng.random(SHAPE), 1) * 3 - 1, 0, 1).astype(np.float32) for _ in "fm"]
    labels = [(image * 5).astype(dtype) * 3 for image in images]
    seen = [np.zeros(SHAPE, np.uint8) for _ in "fm"]
    seen[0][2:], seen[1][:, :-4] = 1, 1
    return PairArrays(*images, *labels, *seen)


def arrays(pair: PairArrays) -> list[NDArray]:
    """Images, label maps and what is seen."""
    return [array for array in vars(pair).values() if array is not None]


def equal(first: PairArrays, second: PairArrays) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(arrays(first), arrays(second), strict=True))


def test_zero_probabilities_change_nothing() -> None:
    assert equal(augment_pair(make_pair(), NOTHING, np.random.default_rng(0)), make_pair())


@hypothesis_settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**20), dtype=st.sampled_from([np.uint8, np.int16, np.int64]))
def test_deterministic_and_keeps_its_promises(seed: int, dtype: type[np.integer]) -> None:
    pair = make_pair(seed, dtype)
    result = augment_pair(pair, EVERYTHING, np.random.default_rng(seed))
    assert equal(result, augment_pair(pair, EVERYTHING, np.random.default_rng(seed)))
    assert not equal(result, augment_pair(pair, EVERYTHING, np.random.default_rng(seed + 1)))
    assert equal(pair, make_pair(seed, dtype))  # the input is left alone
    for image in (result.fixed, result.moving):
        assert image.dtype == np.float32
        assert image.shape == SHAPE
        assert image.min() >= 0
        assert image.max() <= 1
    for labels, original in ((result.fixed_labels, pair.fixed_labels), (result.moving_labels, pair.moving_labels)):
        assert labels is not None
        assert original is not None
        assert labels.dtype == dtype
        assert set(np.unique(labels)) <= {0, *np.unique(original)}
    for seen in (result.fixed_seen, result.moving_seen):
        assert seen is not None
        assert seen.dtype == np.uint8
        assert set(np.unique(seen)) <= {0, 1}


def test_global_generator_of_numpy_is_neither_used_nor_moved() -> None:
    results = []
    for seed in (1, 2):
        np.random.seed(seed)  # noqa: NPY002
        before = np.random.get_state()[1].copy()  # noqa: NPY002
        results.append(augment_pair(make_pair(), EVERYTHING, np.random.default_rng(5)))
        np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert equal(*results)


@pytest.mark.parametrize(("name", "axis"), [("z", 0), ("y", 1), ("x", 2)])
def test_mirrors_all_arrays_together(name: str, axis: int) -> None:
    pair = make_pair()
    settings = NOTHING.model_copy(update={"mirror_axes": (name,)})
    flipped = PairArrays(*(np.flip(array, axis) for array in arrays(pair)))
    rng = np.random.default_rng(0)
    outcomes = []
    for _ in range(60):
        result = augment_pair(pair, settings, rng)
        outcomes.append(equal(result, flipped))
        assert outcomes[-1] or equal(result, pair)
    assert 15 < sum(outcomes) < 45


def test_spatial_moves_an_image_and_its_labels_alike_and_each_image_on_its_own() -> None:
    volume = np.zeros((30, 30, 30), dtype=np.float32)
    volume[8:20, 10:24, 7:18] = 1
    labels = volume.astype(np.uint8)
    settings = NOTHING.model_copy(update={"spatial_probability": 1.0})
    for seed in range(3):
        result = augment_pair(PairArrays(volume, volume, labels, labels), settings, np.random.default_rng(seed))
        for image, moved in ((result.fixed, result.fixed_labels), (result.moving, result.moving_labels)):
            assert moved is not None
            assert not np.array_equal(moved, labels)
            # Linear and nearest interpolation of a box differ only at edges, where the linear value is near a half.
            differs = (image > 0.5) != (moved > 0)
            assert differs.sum() < 0.06 * moved.sum()
            assert np.abs(np.subtract(ndimage.center_of_mass(image), ndimage.center_of_mass(moved))).max() < 0.15
            assert 0.92**-3 * 1.02 > image.sum() / volume.sum() > 1.08**-3 * 0.98
            shift = np.subtract(ndimage.center_of_mass(image), ndimage.center_of_mass(volume))
            assert np.abs(shift).max() < 6
        assert not np.array_equal(result.fixed, result.moving)


def test_what_is_seen_moves_with_the_image() -> None:
    rng = np.random.default_rng(0)
    bright = rng.uniform(0.5, 1, (24, 26, 28)).astype(np.float32)
    seen = np.zeros(bright.shape, np.uint8)
    seen[4:20, 3:22, 5:26] = 1
    image, labels = bright * seen, 7 * seen.astype(np.int16)
    settings = NOTHING.model_copy(update={"spatial_probability": 1.0, "mirror_axes": ("x", "y")})
    for seed in range(4):
        result = augment_pair(
            PairArrays(image, image, labels, labels, seen, seen), settings, np.random.default_rng(seed)
        )
        sides = (
            (result.fixed, result.fixed_labels, result.fixed_seen),
            (result.moving, result.moving_labels, result.moving_seen),
        )
        for moved, moved_labels, moved_seen in sides:
            assert moved_labels is not None
            assert moved_seen is not None
            assert not np.array_equal(moved_seen, seen)
            np.testing.assert_array_equal(moved_labels, 7 * moved_seen.astype(np.int16))
            # Well inside there is an image, well outside there is none.
            assert (moved[ndimage.binary_erosion(moved_seen, np.ones((3, 3, 3)), 2)] > 0.4).all()
            assert (moved[~ndimage.binary_dilation(moved_seen, np.ones((3, 3, 3)), 2)] == 0).all()


def test_what_looks_outside_is_not_seen() -> None:
    """Of a volume that is seen whole, what comes in at its borders is not."""
    ones = np.ones(SHAPE, np.uint8)
    settings = NOTHING.model_copy(update={"spatial_probability": 1.0, "scale": (1.3, 1.3)})
    pair = PairArrays(ones.astype(np.float32), ones.astype(np.float32), None, None, ones, ones)
    result = augment_pair(pair, settings, np.random.default_rng(0))
    for image, seen in ((result.fixed, result.fixed_seen), (result.moving, result.moving_seen)):
        assert seen is not None
        assert 0.2 < seen.mean() < 0.7
        assert (image[seen == 0] < 0.55).all()
        assert image[seen == 1].min() > 0.45


def test_intensity_leaves_labels_alone() -> None:
    pair = make_pair()
    settings = NOTHING.model_copy(update={"intensity_probability": 1.0})
    result = augment_pair(pair, settings, np.random.default_rng(0))
    assert not np.array_equal(result.fixed, pair.fixed)
    assert not np.array_equal(result.moving, pair.moving)
    assert np.array_equal(result.fixed_labels, pair.fixed_labels)
    assert np.array_equal(result.moving_labels, pair.moving_labels)


MAPS = ("fixed_labels", "moving_labels", "fixed_seen", "moving_seen")


@pytest.mark.parametrize("keep", [(), *((name,) for name in MAPS), ("fixed_labels", "moving_seen"), MAPS[2:]])
def test_missing_maps_stay_missing(keep: tuple[str, ...]) -> None:
    pair = make_pair()
    partial = PairArrays(pair.fixed, pair.moving, **{name: getattr(pair, name) for name in keep})
    result = augment_pair(partial, EVERYTHING, np.random.default_rng(3))
    whole = augment_pair(pair, EVERYTHING, np.random.default_rng(3))
    for name in MAPS:
        assert (getattr(result, name) is not None) == (name in keep)
        if name in keep:
            assert np.array_equal(getattr(result, name), getattr(whole, name))
    assert np.array_equal(result.fixed, whole.fixed)


def test_wrong_settings_and_shapes_are_refused() -> None:
    with pytest.raises(ValidationError):
        AugmentationSettings.model_validate({"mirror": ("x",)})
    with pytest.raises(ValidationError):
        AugmentationSettings(spatial_probability=1.5)
    pair = make_pair()
    with pytest.raises(ValueError, match="one shape"):
        PairArrays(pair.fixed, pair.moving[1:])
    with pytest.raises(ValueError, match="one shape"):
        PairArrays(pair.fixed, pair.moving, fixed_seen=np.ones((3, 3, 3), np.uint8))
