"""Surface distances against MONAI, against plain loops over Google's published table, and against its package."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from scipy.ndimage import gaussian_filter
from surface_oracles import AREAS, TABLE, plain_distances, plain_hd95_learn2reg, plain_surface

from llmreg.evaluation.surfaces import element_areas, hd95_learn2reg_per_label, surface_distances_per_label

SHAPES = st.tuples(*[st.integers(1, 5)] * 3)
SPACINGS = [(1.0, 1.0, 1.0), (0.7, 1.3, 4.0), (3.0, 2.0, 0.9)]


def blobs(seed: int, labels: int, shape: tuple[int, int, int] = (18, 20, 22)) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(labels + 1, *shape))
    return np.argmax([gaussian_filter(channel, 2.5) for channel in noise], axis=0).astype(np.uint8)


def one_hot(array: np.ndarray, ids: list[int]) -> torch.Tensor:
    return torch.from_numpy(np.stack([array == i for i in ids])[None].astype(np.float32))


def monai(a: np.ndarray, b: np.ndarray, ids: list[int], spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    options = {"include_background": True, "spacing": spacing[::-1]}
    hd95 = compute_hausdorff_distance(one_hot(a, ids), one_hot(b, ids), percentile=95, **options)
    assd = compute_average_surface_distance(one_hot(a, ids), one_hot(b, ids), symmetric=True, **options)
    return hd95[0].numpy(), assd[0].numpy()


def maps(shapes: st.SearchStrategy, dtype: type = np.uint8) -> st.SearchStrategy:
    """Two label maps of one shape with the ids 0, 2, 3 and 200, which may be anywhere or nowhere."""
    return shapes.flatmap(
        lambda shape: st.tuples(*[arrays.arrays(dtype, shape, elements=st.sampled_from([0, 2, 3, 200]))] * 2)
    )


def test_element_areas_are_those_of_the_published_table() -> None:
    # The published table counts bits the other way round, which turns the cube about and changes no area.
    np.testing.assert_allclose(element_areas(), [AREAS[int(place, 16)] for place in TABLE], rtol=1e-15)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_smooth_labels_as_in_monai(spacing: tuple[float, float, float]) -> None:
    a, b = blobs(3, 4), blobs(4, 4)
    distances = surface_distances_per_label(a, b, range(1, 5), spacing, threads=2)
    hd95, assd = monai(a, b, [1, 2, 3, 4], spacing)
    np.testing.assert_allclose([d.hd95 for d in distances.values()], hd95, rtol=1e-5)
    np.testing.assert_allclose([d.assd for d in distances.values()], assd, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(label_maps=maps(SHAPES, np.int32), spacing=st.sampled_from(SPACINGS))
def test_any_labels_as_by_plain_loops(
    label_maps: tuple[np.ndarray, np.ndarray], spacing: tuple[float, float, float]
) -> None:
    a, b = label_maps
    distances = surface_distances_per_label(a, b, [2, 3, 200], spacing)
    for i in (2, 3, 200):
        if not (a == i).any() or not (b == i).any():
            assert np.isnan([distances[i].hd95, distances[i].assd]).all()
            continue
        on_a, on_b = (plain_surface(array == i) * spacing[::-1] for array in (a, b))
        forward, backward = plain_distances(on_a, on_b), plain_distances(on_b, on_a)
        assert distances[i].hd95 == pytest.approx(max(np.percentile(forward, 95), np.percentile(backward, 95)))
        assert distances[i].assd == pytest.approx(np.concatenate((forward, backward)).mean())


@settings(max_examples=30, deadline=None)
@given(label_maps=maps(SHAPES))
def test_learn2regs_hd95_of_any_labels_as_by_plain_loops(label_maps: tuple[np.ndarray, np.ndarray]) -> None:
    warped, fixed = label_maps
    unwarped = np.array([[[2, 200]]], np.uint8)
    hd95 = hd95_learn2reg_per_label(warped, fixed, [2, 3, 200], unwarped)
    assert np.isnan(hd95[3])
    for i in (2, 200):
        if not (fixed == i).any():
            assert np.isnan(hd95[i])
        elif not (warped == i).any():
            assert hd95[i] == np.inf
        else:
            assert hd95[i] == pytest.approx(plain_hd95_learn2reg(warped == i, fixed == i))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_learn2regs_hd95_is_googles_to_the_last_digit() -> None:
    package = pytest.importorskip("surface_distance")
    random = np.random.default_rng(0)
    for seed in range(40):
        shape = tuple(random.integers(1, 12, 3))
        a, b = blobs(seed, 2, shape), blobs(seed + 1, 2, shape)
        if seed % 2:
            a, b = random.integers(0, 3, (2, *shape))
        hd95 = hd95_learn2reg_per_label(a, b, [1, 2], b)
        for i in (1, 2):
            if (a == i).any() and (b == i).any():
                google_distances = package.compute_surface_distances(b == i, a == i, np.ones(3))
                assert hd95[i] == package.compute_robust_hausdorff(google_distances, 95.0)


def test_single_voxels_along_each_axis() -> None:
    for axis, expected in enumerate((9.0 * 3, 7.0 * 3, 2.0 * 3)):
        a = np.zeros((9, 9, 9), np.uint8)
        a[4, 4, 4] = 1
        b = np.roll(a, 3, axis)
        distances = surface_distances_per_label(a, b, [1], (2.0, 7.0, 9.0))[1]
        assert (distances.hd95, distances.assd) == (expected, expected)
        assert hd95_learn2reg_per_label(a, b, [1], a)[1] == 3


def test_hd95_counts_the_larger_direction() -> None:
    a = np.zeros((1, 1, 30), np.uint8)
    b = a.copy()
    a[0, 0, 0], b[0, 0, [0, 20]] = 1, 1
    # One of b's two points lies 20 away from a; a's only point lies on b.
    for first, second in ((a, b), (b, a)):
        distances = surface_distances_per_label(first, second, [1], (1, 1, 1))[1]
        assert distances.hd95 == pytest.approx(np.percentile([0, 20], 95))
        assert distances.assd == pytest.approx(20 / 3)


def test_labels_that_fill_the_image_or_are_nowhere() -> None:
    full, empty = np.full((3, 3, 3), 2, np.int16), np.zeros((3, 3, 3), np.int16)
    for a, b in itertools.product((full, empty), repeat=2):
        distances = surface_distances_per_label(a, b, [2], (1, 1, 1))[2]
        assert (distances.hd95, distances.assd) == (0, 0) if a.any() and b.any() else np.isnan(distances.hd95)
    assert hd95_learn2reg_per_label(full, full, [2], full) == {2: 0}
    assert hd95_learn2reg_per_label(empty, full, [2], full) == {2: np.inf}
    assert np.isnan(hd95_learn2reg_per_label(full, full, [2], empty)[2])
    assert np.isnan(hd95_learn2reg_per_label(full, empty, [2], full)[2])
    assert (
        surface_distances_per_label(full, full, [], (1, 1, 1)) == {} == hd95_learn2reg_per_label(full, full, [], full)
    )
    with pytest.raises(ValueError, match="positive"):
        surface_distances_per_label(full, full, [0], (1, 1, 1))
    with pytest.raises(ValueError, match="differ in shape"):
        hd95_learn2reg_per_label(full, full[:1], [1], full)
