from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import ndimage

from llmreg.training.augmentation import AugmentationSettings, CaseArrays, augment_pair

SHAPE = (14, 20, 16)
NOTHING = AugmentationSettings(spatial_probability=0.0, intensity_probability=0.0)
EVERYTHING = AugmentationSettings(mirror_axes=("x", "y", "z"), spatial_probability=1.0, intensity_probability=1.0)


PairArrays = tuple[CaseArrays, CaseArrays]


def make_pair(seed: int = 0, dtype: type[np.integer] = np.uint8) -> PairArrays:
    rng = np.random.default_rng(seed)
    images = [np.clip(ndimage.gaussian_filter(rng.random(SHAPE), 1) * 3 - 1, 0, 1).astype(np.float32) for _ in "fm"]
    labels = [(image * 5).astype(dtype) * 3 for image in images]
    seen_masks = [np.zeros(SHAPE, np.uint8) for _ in "fm"]
    seen_masks[0][2:], seen_masks[1][:, :-4] = 1, 1
    return CaseArrays(images[0], labels[0], seen_masks[0]), CaseArrays(images[1], labels[1], seen_masks[1])


def arrays(pair: PairArrays) -> list[NDArray]:
    """The image, the label map and the mask of what is seen, of both cases."""
    return [array for case in pair for array in vars(case).values()]


def are_equal(first: PairArrays, second: PairArrays) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(arrays(first), arrays(second), strict=True))


def test_zero_probabilities_change_nothing() -> None:
    assert are_equal(augment_pair(*make_pair(), NOTHING, np.random.default_rng(0)), make_pair())


@hypothesis_settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**20), dtype=st.sampled_from([np.uint8, np.int16, np.int64]))
def test_deterministic_and_keeps_its_promises(seed: int, dtype: type[np.integer]) -> None:
    pair = make_pair(seed, dtype)
    result = augment_pair(*pair, EVERYTHING, np.random.default_rng(seed))
    assert are_equal(result, augment_pair(*pair, EVERYTHING, np.random.default_rng(seed)))
    assert not are_equal(result, augment_pair(*pair, EVERYTHING, np.random.default_rng(seed + 1)))
    assert are_equal(pair, make_pair(seed, dtype))  # The input stays as it is.
    for case, original in zip(result, pair, strict=True):
        assert case.image.dtype == np.float32
        assert case.image.shape == SHAPE
        assert case.image.min() >= 0
        assert case.image.max() <= 1
        assert case.labels.dtype == dtype
        assert set(np.unique(case.labels)) <= {0, *np.unique(original.labels)}
        assert case.seen.dtype == np.uint8
        assert set(np.unique(case.seen)) <= {0, 1}


def test_global_generator_of_numpy_is_neither_used_nor_moved() -> None:
    results = []
    for seed in (1, 2):
        np.random.seed(seed)  # noqa: NPY002
        before = np.random.get_state()[1].copy()  # noqa: NPY002
        results.append(augment_pair(*make_pair(), EVERYTHING, np.random.default_rng(5)))
        np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert are_equal(*results)


@pytest.mark.parametrize(("name", "axis"), [("z", 0), ("y", 1), ("x", 2)])
def test_mirrors_all_arrays_together(name: str, axis: int) -> None:
    pair = make_pair()
    settings = NOTHING.model_copy(update={"mirror_axes": (name,)})
    fixed, moving = (CaseArrays(*(np.flip(array, axis) for array in vars(case).values())) for case in pair)
    rng = np.random.default_rng(0)
    outcomes = []
    for _ in range(60):
        result = augment_pair(*pair, settings, rng)
        outcomes.append(are_equal(result, (fixed, moving)))
        assert outcomes[-1] or are_equal(result, pair)
    assert 15 < sum(outcomes) < 45


def test_spatial_moves_an_image_and_its_labels_alike_and_each_image_on_its_own() -> None:
    volume = np.zeros((30, 30, 30), dtype=np.float32)
    volume[8:20, 10:24, 7:18] = 1
    labels = volume.astype(np.uint8)
    settings = NOTHING.model_copy(update={"spatial_probability": 1.0})
    case = CaseArrays(volume, labels, np.ones_like(labels))
    for seed in range(3):
        result = augment_pair(case, case, settings, np.random.default_rng(seed))
        for image, warped_labels in ((warped_case.image, warped_case.labels) for warped_case in result):
            assert not np.array_equal(warped_labels, labels)
            # Linear and nearest interpolation of a box differ only at edges, where the linear value is near a half.
            differs = (image > 0.5) != (warped_labels > 0)
            assert differs.sum() < 0.06 * warped_labels.sum()
            assert (
                np.abs(np.subtract(ndimage.center_of_mass(image), ndimage.center_of_mass(warped_labels))).max() < 0.15
            )
            assert 0.92**-3 * 1.02 > image.sum() / volume.sum() > 1.08**-3 * 0.98
            shift = np.subtract(ndimage.center_of_mass(image), ndimage.center_of_mass(volume))
            assert np.abs(shift).max() < 6
        assert not np.array_equal(result[0].image, result[1].image)


def test_what_is_seen_moves_with_the_image() -> None:
    rng = np.random.default_rng(0)
    bright = rng.uniform(0.5, 1, (24, 26, 28)).astype(np.float32)
    seen_mask = np.zeros(bright.shape, np.uint8)
    seen_mask[4:20, 3:22, 5:26] = 1
    case = CaseArrays(bright * seen_mask, 7 * seen_mask.astype(np.int16), seen_mask)
    settings = NOTHING.model_copy(update={"spatial_probability": 1.0, "mirror_axes": ("x", "y")})
    for seed in range(4):
        for warped in augment_pair(case, case, settings, np.random.default_rng(seed)):
            assert not np.array_equal(warped.seen, seen_mask)
            np.testing.assert_array_equal(warped.labels, 7 * warped.seen.astype(np.int16))
            # The image is bright well inside the mask and empty well outside it.
            assert (warped.image[ndimage.binary_erosion(warped.seen, np.ones((3, 3, 3)), 2)] > 0.4).all()
            assert (warped.image[~ndimage.binary_dilation(warped.seen, np.ones((3, 3, 3)), 2)] == 0).all()


def test_what_looks_outside_is_not_seen() -> None:
    """The volume is seen everywhere; what comes in from beyond its borders is not."""
    ones = np.ones(SHAPE, np.uint8)
    settings = NOTHING.model_copy(update={"spatial_probability": 1.0, "scale": (1.3, 1.3)})
    case = CaseArrays(ones.astype(np.float32), np.zeros_like(ones), ones)
    result = augment_pair(case, case, settings, np.random.default_rng(0))
    for image, seen_mask in ((warped_case.image, warped_case.seen) for warped_case in result):
        assert 0.2 < seen_mask.mean() < 0.7
        assert (image[seen_mask == 0] < 0.55).all()
        assert image[seen_mask == 1].min() > 0.45


def test_intensity_leaves_labels_alone() -> None:
    pair = make_pair()
    settings = NOTHING.model_copy(update={"intensity_probability": 1.0})
    result = augment_pair(*pair, settings, np.random.default_rng(0))
    for case, original in zip(result, pair, strict=True):
        assert not np.array_equal(case.image, original.image)
        assert np.array_equal(case.labels, original.labels)
        assert np.array_equal(case.seen, original.seen)


def test_empty_label_maps_stay_empty_and_change_nothing_else() -> None:
    pair = make_pair()
    fixed, moving = (replace(case, labels=np.zeros_like(case.labels)) for case in pair)
    result = augment_pair(fixed, moving, EVERYTHING, np.random.default_rng(3))
    for case, with_labels in zip(result, augment_pair(*pair, EVERYTHING, np.random.default_rng(3)), strict=True):
        assert not case.labels.any()
        assert with_labels.labels.any()
        assert np.array_equal(case.image, with_labels.image)
        assert np.array_equal(case.seen, with_labels.seen)


@pytest.mark.parametrize("kinds", [(np.uint8, np.int32), (np.int64, np.uint8)])
def test_each_label_map_keeps_its_own_type(kinds: tuple[type[np.integer], ...]) -> None:
    fixed, moving = (replace(case, labels=case.labels.astype(k)) for case, k in zip(make_pair(), kinds, strict=True))
    result = augment_pair(fixed, moving, EVERYTHING, np.random.default_rng(3))
    assert tuple(case.labels.dtype for case in result) == kinds


def test_wrong_settings_and_shapes_are_refused() -> None:
    with pytest.raises(ValidationError):
        AugmentationSettings.model_validate({"mirror": ("x",)})
    with pytest.raises(ValidationError):
        AugmentationSettings(spatial_probability=1.5)
    case, _ = make_pair()
    with pytest.raises(ValueError, match="one shape"):
        replace(case, labels=case.labels[1:])
    with pytest.raises(ValueError, match="one shape"):
        replace(case, seen=np.ones((3, 3, 3), np.uint8))
    with pytest.raises(ValueError, match="one shape"):
        CaseArrays(case.image[0], case.labels[0], case.seen[0])
