from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from smooth import smooth_noise
from torch import Tensor

from llmreg.geometry.warping import jacobian_determinant
from llmreg.inference.refinement import Refined, refine
from llmreg.preprocessing.plans import Loss
from llmreg.training.losses import gradient_l2
from llmreg.training.similarity import mind_ssc

# None of them is a multiple of a block.
SHAPE = (30, 34, 38)
LARGEST = 3.0


@dataclass(frozen=True)
class Pair:
    """Two contrasts of one anatomy, the arguments of ``refine``, and the field that relates them."""

    truth: Tensor
    fixed: Tensor
    moving: Tensor
    fixed_seen: Tensor
    moving_seen: Tensor

    def refined(self, flow: Tensor, iterations: int = 40, loss: Loss | None = None) -> Refined:
        seen = self.fixed_seen, self.moving_seen
        return refine(flow, self.fixed, self.moving, *seen, loss or Loss(), iterations)

    def error(self, flow: Tensor) -> float:
        """Mean distance from the truth, where the truth looks into the image."""
        return float((flow - self.truth).square().sum(dim=1).sqrt()[..., 3:-3, 3:-3, 3:-3].mean())


def make_pair(seed: int, shape: tuple[int, ...] = SHAPE, moved: float = LARGEST) -> Pair:
    """Each image is rendered of the continuous anatomy; components of the field reach ``moved`` voxels."""
    rng = np.random.default_rng(seed)
    anatomy = smooth_noise(rng, shape, 2.5)
    field = np.stack([moved * smooth_noise(rng, shape, 6.0) for _ in range(3)])
    places = np.indices(shape) + field[::-1]
    images = []
    for seen_at, levels in (
        (places, (0.1, 0.6, 0.35, 0.9, 0.5)),
        (np.indices(shape), (0.7, 0.2, 0.9, 0.45, 0.1)),
    ):
        tissue = np.digitize(map_coordinates(anatomy, seen_at, order=3, mode="nearest"), (-0.4, -0.1, 0.15, 0.4))
        image = np.array(levels)[tissue] + rng.normal(0, 0.02, shape)
        images.append(torch.from_numpy(image).float()[None, None])
    everywhere = torch.ones(1, *shape, dtype=torch.uint8)
    return Pair(torch.from_numpy(field).float()[None], *images, everywhere, everywhere.clone())


def folded(flow: Tensor) -> float:
    return float((jacobian_determinant(flow) <= 0).float().mean())


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make_pair(0)


@pytest.mark.parametrize("seed", [0, 1])
def test_from_nothing_the_error_falls_by_a_lot(seed: int) -> None:
    pair = make_pair(seed)
    start = torch.zeros_like(pair.truth)
    found = pair.refined(start)
    assert pair.error(start) > 1.0
    assert pair.error(found.flow) < 0.4 * pair.error(start)
    assert found.after < 0.8 * found.before
    assert folded(found.flow) < 0.0005


def test_a_good_field_hardly_moves(pair: Pair) -> None:
    found = pair.refined(pair.truth)
    assert found.after <= found.before
    moved = (found.flow - pair.truth).square().sum(dim=1).sqrt()
    assert float(moved.mean()) < 0.25
    assert float(moved.max()) < 1.5


def test_a_disturbed_field_comes_back(pair: Pair) -> None:
    rng = np.random.default_rng(5)
    noise = np.stack([smooth_noise(rng, SHAPE, 4.0) for _ in range(3)])
    start = pair.truth + 2 * torch.from_numpy(noise).float()[None]
    assert pair.error(pair.refined(start).flow) < 0.6 * pair.error(start)


def test_folding_is_taken_back(pair: Pair) -> None:
    rng = np.random.default_rng(6)
    noise = np.stack([smooth_noise(rng, SHAPE, 2.0) for _ in range(3)])
    start = pair.truth + 4 * torch.from_numpy(noise).float()[None]
    assert folded(start) > 0.005
    assert folded(pair.refined(start, 100).flow) < 0.0005


@pytest.mark.parametrize("iterations", [1, 2, 7])
@pytest.mark.parametrize("seed", range(3))
def test_never_worse_in_its_own_objective(seed: int, iterations: int) -> None:
    """However few the steps, from fields good and bad."""
    pair = make_pair(seed, (16, 12, 20))
    for start in (torch.zeros_like(pair.truth), pair.truth, -pair.truth):
        found = pair.refined(start, iterations)
        assert found.after <= found.before
        assert 0 <= found.iterations <= iterations
        assert found.after < found.before or torch.equal(found.flow, start)


def test_the_objective_is_that_of_the_descriptors_in_blocks() -> None:
    pair = make_pair(3, (12, 16, 20))
    found = pair.refined(torch.zeros_like(pair.truth), 0)
    fixed, moving = (
        mind_ssc(image)[0].reshape(12, 6, 2, 8, 2, 10, 2).mean(dim=(2, 4, 6)) for image in (pair.fixed, pair.moving)
    )
    assert found.before == pytest.approx(float((fixed - moving).square().mean()), rel=1e-5)


def test_what_is_returned_has_the_objective_that_is_reported() -> None:
    pair = make_pair(4, (16, 20, 24))
    start = 0.5 * pair.truth
    found = pair.refined(start, 20)
    correction = (found.flow - start).reshape(1, 3, 8, 2, 10, 2, 12, 2).mean(dim=(3, 5, 7)) / 2
    again = pair.refined(found.flow, 0).before
    assert found.after == pytest.approx(again + float(gradient_l2(correction)), rel=1e-4)


def test_without_iterations_the_field_stays(pair: Pair) -> None:
    found = pair.refined(pair.truth, 0)
    assert torch.equal(found.flow, pair.truth)
    assert (found.before, found.iterations) == (found.after, 0)
    assert found.flow.data_ptr() != pair.truth.data_ptr()


def test_it_stops_when_nothing_is_left_to_gain() -> None:
    pair = make_pair(1, moved=0)
    found = refine(pair.truth, pair.fixed, pair.fixed, pair.fixed_seen, pair.moving_seen, Loss(), 1000)
    assert found.iterations < 50
    assert torch.equal(found.flow, pair.truth)


def test_twice_is_the_same(pair: Pair) -> None:
    start = torch.zeros_like(pair.truth)
    one, other = pair.refined(start, 10), pair.refined(start, 10)
    assert torch.equal(one.flow, other.flow)
    assert one.after == other.after


def test_works_on_tensors_of_inference_mode(pair: Pair) -> None:
    with torch.inference_mode():
        inputs = [array.clone() for array in (torch.zeros_like(pair.truth), pair.fixed, pair.moving)]
        found = refine(*inputs, pair.fixed_seen.clone(), pair.moving_seen.clone(), Loss(), 10)
    assert not found.flow.requires_grad
    assert torch.equal(found.flow, pair.refined(torch.zeros_like(pair.truth), 10).flow)


def cut(pair: Pair) -> Pair:
    """The fixed field of view ends at y = 27, the moving one begins at x = 9."""
    fixed_seen, moving_seen = pair.fixed_seen.clone(), pair.moving_seen.clone()
    fixed_seen[:, :, 28:] = 0
    moving_seen[..., :9] = 0
    return replace(pair, fixed_seen=fixed_seen, moving_seen=moving_seen)


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan")])
def test_what_is_not_seen_has_no_influence(pair: Pair, value: float) -> None:
    part = cut(pair)
    other = replace(
        part,
        fixed=part.fixed.where(part.fixed_seen[:, None] > 0, value),
        moving=part.moving.where(part.moving_seen[:, None] > 0, value),
    )
    start = 0.5 * pair.truth
    assert torch.equal(part.refined(start, 10).flow, other.refined(start, 10).flow)


def test_edges_of_fields_of_view_do_not_pull() -> None:
    """One image twice, cut in two ways: the field that is right from the start stays."""
    pair = cut(make_pair(2, moved=0))
    moving = pair.fixed.where(pair.moving_seen[:, None] > 0, 0.0)
    for start in (torch.zeros_like(pair.truth), torch.full_like(pair.truth, 0.25)):
        found = replace(pair, moving=moving).refined(start)
        assert float(found.flow.abs().amax()) < 0.6


def test_where_nothing_is_comparable_the_field_stays(pair: Pair) -> None:
    blind = replace(pair, moving_seen=torch.zeros_like(pair.moving_seen))
    found = blind.refined(pair.truth)
    assert torch.equal(found.flow, pair.truth)


def test_a_stiffer_plan_makes_a_smoother_correction(pair: Pair) -> None:
    start = torch.zeros_like(pair.truth)
    bends = [
        float(gradient_l2(pair.refined(start, 20, loss).flow))
        for loss in (Loss(), Loss(smoothness=10), Loss(bending=10))
    ]
    assert bends[1] < 0.5 * bends[0]
    assert bends[2] < 0.9 * bends[0]


def test_refuses_shapes_that_do_not_belong_together(pair: Pair) -> None:
    with pytest.raises(ValueError, match="expected flow"):
        pair.refined(pair.truth[..., 1:])
    with pytest.raises(ValueError, match="expected flow"):
        replace(pair, moving_seen=pair.moving_seen[None]).refined(pair.truth)
    with pytest.raises(ValueError, match="negative"):
        pair.refined(pair.truth, -1)
