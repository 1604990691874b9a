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


@pytest.mark.parametrize("name", ["upsample", "exponential", "invert", "jacobian_determinant"])
def test_flows_stay_in_float32_under_autocast(name):
    flow = random_flow(1, 1.5).bfloat16()
    expected = getattr(warping, name)(flow)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = getattr(warping, name)(flow)
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)


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


def apply_matrix(matrix: np.ndarray, points: torch.Tensor) -> torch.Tensor:
    return torch.einsum("ij,bjzyx->bizyx", torch.from_numpy(matrix).float(), points)


def test_one_newton_step_inverts_an_affine_flow():
    """Interpolation and differences are exact for it, so that the oracle is the inverse of its matrix."""
    matrix = np.array([[0.3, 0.1, -0.05], [-0.1, 0.4, 0.05], [0.05, -0.06, 0.35]])
    centred = warping.identity_grid(SHAPE) - (torch.tensor(SHAPE[::-1]).view(1, 3, 1, 1, 1) - 1) / 2
    expected = apply_matrix(np.linalg.inv(np.eye(3) + matrix) - np.eye(3), centred)
    start = expected + torch.rand(expected.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    result = warping.invert(apply_matrix(matrix, centred), start, iterations=1)
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("component", [0, 1, 2])
def test_newtons_step_has_the_derivative_from_where_the_flow_is_looked_up(component):
    """A flow that grows with the square, whose central differences are exact, looked up a voxel further on."""
    places = warping.identity_grid((9, 11, 13))
    flow, start = torch.zeros_like(places), torch.zeros_like(places)
    flow[:, component] = 0.02 * places[:, component] ** 2
    start[:, component] = 1
    result = warping.invert(flow, start, iterations=1)
    ends = places[:, component] + 1
    expected = 1 - (1 + 0.02 * ends**2) / (1 + 0.04 * ends)
    inner = (..., *(slice(1, -2),) * 3)
    torch.testing.assert_close(result[:, component][inner], expected[inner], atol=1e-5, rtol=0)


def test_a_voxel_stays_once_no_component_is_off_by_more_than_the_tolerance():
    """Where nothing is displaced, the start itself is the error."""
    start = torch.zeros(1, 3, 4, 5, 6)
    start[0, :, 0, 1, 2] = torch.tensor([0.125, -0.125, 0.125])
    expected = start.clone()
    start[0, 1, 3, 4, 5] = -0.1875
    start[0, 2, 1, 0, 0] = 0.1875
    assert torch.equal(warping.invert(torch.zeros_like(start), start, tolerance=0.125), expected)


@pytest.mark.parametrize("component", [0, 1, 2])
@pytest.mark.parametrize(
    ("start", "iterations", "expected"),
    [
        (2.5, 1, 0),
        (-2.5, 1, 0),
        # A step of three voxels or more is not taken, but half of the error.
        (3, 1, 1.5),
        (3.5, 1, 1.75),
        (-3.5, 1, -1.75),
        # After eleven halvings the twelfth iteration may take Newton's step, and the thirteenth may not.
        (5000, 12, 0),
        (10000, 12, 10000 / 2**12),
        (10000, 13, 10000 / 2**13),
        (10000, 50, 10000 / 2**24),
    ],
)
def test_long_and_late_newton_steps_are_not_taken(component, start, iterations, expected):
    """Where nothing is displaced, Newton's step leads to zero at once."""
    flow = torch.zeros(1, 3, 4, 5, 6)
    flow[:, component] = start
    result = warping.invert(torch.zeros_like(flow), flow, iterations=iterations)
    flow[:, component] = expected
    assert torch.equal(result, flow)


@pytest.mark.parametrize("component", [0, 1, 2])
@pytest.mark.parametrize(("determinant", "expected"), [(0.15, 0), (0.05, 0.4875), (-1, 0.75)])
def test_no_newton_step_is_taken_next_to_a_fold(component, determinant, expected):
    """A flow that grows by determinant - 1 a voxel, looked up half a voxel from its zero in the middle."""
    middle = (4, 5, 6)
    places = warping.identity_grid((9, 11, 13))
    flow, start = torch.zeros_like(places), torch.zeros_like(places)
    flow[:, component] = (determinant - 1) * (places[:, component] - middle[2 - component])
    start[:, component] = 0.5
    result = warping.invert(flow, start, iterations=1)
    assert result[(0, component, *middle)] == pytest.approx(expected, abs=1e-5)


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
