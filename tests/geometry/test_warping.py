"""Flows, the displacements that networks compute: warping with them, composing, inverting and unfolding them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.blocks import DVF2DDF
from scipy.ndimage import map_coordinates
from smooth import smooth_noise

from llmreg.geometry import warping
from llmreg.geometry.warping import nearest_velocity

SHAPE, LARGE_SHAPE = (10, 12, 14), (24, 20, 22)


def random_flow(seed: int, voxels: float, sigma: float = 3.0, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    flow = np.stack([smooth_noise(rng, shape, sigma) for _ in range(3)]) * voxels
    return torch.from_numpy(flow.astype(np.float32))[None]


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), mode=st.sampled_from(["bilinear", "nearest"]), border=st.booleans())
def test_warp_is_scipy_map_coordinates(seed, mode, border):
    values = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
    flow = random_flow(seed, 3.0)
    padding = "border" if border else "zeros"
    result = warping.warp(torch.from_numpy(values)[None, None], flow, mode, padding)[0, 0].numpy()
    lookup = np.indices(SHAPE) + flow[0].numpy()[::-1]
    expected = map_coordinates(
        values, lookup, order=1 if mode == "bilinear" else 0, mode="nearest" if border else "grid-constant"
    )
    # Halfway between two voxels either is the nearest.
    tie = np.any(np.abs(lookup - np.floor(lookup) - 0.5) < 1e-4, axis=0) & (mode == "nearest")
    np.testing.assert_allclose(result[~tie], expected[~tie], atol=1e-3)


def test_warp_stays_in_float32_under_autocast_and_has_a_gradient():
    image = torch.rand(2, 1, *SHAPE)
    flow = torch.full((2, 3, *SHAPE), 0.3, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = warping.warp(image, flow)
    assert result.dtype == torch.float32
    assert torch.equal(result, warping.warp(image, flow))
    result.sum().backward()
    assert flow.grad.abs().max() > 0


def test_warp_refuses_differing_shapes():
    with pytest.raises(ValueError, match="shape"):
        warping.warp(torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 3, 4, 4, 5))


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_a_flow_and_its_inverse_cancel_up_to_the_border(seed):
    flow = random_flow(seed, 1.5)
    assert warping.compose(warping.invert(flow), flow).norm(dim=1).max() < 0.003


@pytest.mark.parametrize("component", [0, 1, 2])
def test_inverses_are_found_where_fixed_points_are_not(component):
    """Stretched fourfold, where v -> -u(p + v) leads away; the inverse of x -> 4 x is x -> x / 4."""
    places = warping.identity_grid((9, 14, 40))
    flow = torch.zeros_like(places)
    flow[:, component] = 3 * places[:, component]
    # Newton's method needs few iterations, but only with the derivatives along the right axes.
    result = warping.invert(flow, iterations=12)
    torch.testing.assert_close(result, -0.25 * flow, atol=1e-3, rtol=0)


def test_each_of_a_batch_is_inverted_on_its_own():
    flows = torch.cat([random_flow(seed, 1.5) for seed in (1, 2)])
    result = warping.invert(flows)
    for flow, flow_result in zip(flows, result, strict=True):
        assert torch.equal(warping.invert(flow[None])[0], flow_result)


def test_folds_do_not_spoil_the_inverse_elsewhere():
    flow = random_flow(3, 1.0)
    flow[:, 0, 5:8, 5:8, 5:8] += torch.tensor([0.0, 4.0, 0.0])
    assert (warping.jacobian_determinant(flow) < 0).any()
    result = warping.invert(flow)
    assert result.isfinite().all()
    off = warping.compose(result, flow).norm(dim=1)
    assert (off > 0.003).float().mean() < 0.02


def test_what_is_near_the_inverse_shortens_the_search():
    flow = random_flow(4, 1.5)
    result = warping.invert(flow)
    assert torch.equal(warping.invert(flow, result, iterations=1), result)


def test_upsampling_undoes_downsampling_of_coordinates():
    # A voxel's coordinate on the coarse grid, times 2 plus 1/2, is its block's centre on the fine grid.
    fine = warping.identity_grid((8, 12, 16))
    coarse = warping.identity_grid((4, 6, 8))
    torch.testing.assert_close(warping.downsample_image(fine, 2), 2 * coarse + 0.5)
    assert warping.downsample_image(fine, 1) is fine
    inner = (..., slice(1, -1), slice(1, -1), slice(1, -1))
    # upsample() also doubles the values: coordinates in voxels of the finer grid.
    torch.testing.assert_close((warping.upsample(coarse, 2) + 0.5)[inner], fine[inner])


def test_the_determinant_is_that_of_numpy():
    flow = random_flow(3, 1.5)
    jacobian = np.stack([np.stack(np.gradient(u, axis=(2, 1, 0)), -1) for u in flow[0].numpy()], -2) + np.eye(3)
    np.testing.assert_allclose(warping.jacobian_determinant(flow)[0].numpy(), np.linalg.det(jacobian), atol=1e-5)


@settings(max_examples=5)
@given(seed=st.integers(0, 1000))
def test_the_exponential_is_monais_dvf2ddf(seed):
    velocity = random_flow(seed, 2.0)
    # MONAI's components follow the array's axes.
    expected = DVF2DDF(num_steps=7, mode="bilinear", padding_mode="border")(velocity.flip(1)).flip(1)
    torch.testing.assert_close(warping.exponential(velocity), expected, atol=1e-3, rtol=0)


def test_the_negated_velocity_leads_back():
    velocity = random_flow(4, 2.0)
    forward, backward = warping.exponential(velocity), warping.exponential(-velocity)
    inside = (..., *(slice(3, -3),) * 3)
    assert warping.compose(forward, backward)[inside].norm(dim=1).max() < 0.1
    # Following a constant velocity is a shift by it.
    constant = torch.ones(1, 3, *SHAPE)
    torch.testing.assert_close(warping.exponential(constant), constant)


def test_what_does_not_fold_stays_as_it_is():
    flow = warping.exponential(random_flow(1, 2.0, 4.0, LARGE_SHAPE))
    result = warping.exponential(nearest_velocity(flow))
    assert (result - flow).norm(dim=1).mean() < 0.03
    assert (result - flow).norm(dim=1).max() < 0.5


def test_what_folds_is_smoothed_until_it_does_not():
    flow = random_flow(2, 6.0, 2.5, LARGE_SHAPE)
    assert (warping.jacobian_determinant(flow) <= 0).float().mean() > 0.01
    velocity = nearest_velocity(flow)
    result = warping.exponential(velocity)
    assert warping.jacobian_determinant(result).min() > 0
    inside = (..., *(slice(4, -4),) * 3)
    assert warping.compose(result, warping.exponential(-velocity))[inside].norm(dim=1).max() < 0.2
    # Nearer to the field than the identity is, by far.
    assert (result - flow).norm(dim=1).mean() < 0.4 * flow.norm(dim=1).mean()
