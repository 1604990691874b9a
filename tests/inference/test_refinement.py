"""Refinement finds what moved between two contrasts, and is never worse by its own measure."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from smooth import smooth_noise
from torch import Tensor

from llmreg.geometry import warping
from llmreg.inference.refinement import refine
from llmreg.preprocessing.plans import Loss

SHAPE = (30, 34, 37)
EVERYTHING = (torch.ones(1, *SHAPE), torch.ones(1, *SHAPE))


def error(flow: Tensor, true: Tensor) -> float:
    inner = (..., *(slice(5, -5),) * 3)
    return float((flow - true)[inner].norm(dim=1).mean())


@pytest.fixture(scope="module")
def pair() -> tuple[Tensor, Tensor, Tensor]:
    """Fixed and moving image in two contrasts, and the field between them: 1.5 voxels on average."""
    rng = np.random.default_rng(5)
    texture = torch.from_numpy(smooth_noise(rng, SHAPE, 2.0).astype(np.float32))[None, None] / 2 + 0.5
    true = torch.from_numpy(np.stack([smooth_noise(rng, SHAPE, 5.0) for _ in range(3)]).astype(np.float32))[None]
    true *= 1.5 / error(true, torch.zeros_like(true))
    fixed = (1.2 - warping.warp(texture, true, padding="border")).clamp(0, 1) ** 2
    return fixed, texture, true


def test_a_known_deformation_is_found_from_nothing(pair) -> None:
    fixed, moving, true = pair
    zero = torch.zeros_like(true)
    found = refine(zero, fixed, moving, *EVERYTHING, Loss(), 80)
    assert found.after < found.before
    assert 0 < found.iterations <= 80
    assert error(found.flow, true) < 0.5 * error(zero, true)
    assert (warping.jacobian_determinant(found.flow) <= 0).float().mean() < 5e-4
    again = refine(zero, fixed, moving, *EVERYTHING, Loss(), 80)
    assert torch.equal(found.flow, again.flow)


def test_a_good_field_hardly_moves_and_is_never_worse(pair) -> None:
    fixed, moving, true = pair
    found = refine(true, fixed, moving, *EVERYTHING, Loss(), 30)
    assert found.after <= found.before
    assert error(found.flow, true) < 0.3
    zero = refine(true, fixed, moving, *EVERYTHING, Loss(), 0)
    assert torch.equal(zero.flow, true)
    assert zero.after == zero.before
    assert zero.iterations == 0


def test_what_is_not_seen_does_not_pull(pair) -> None:
    fixed, moving, true = pair
    seen = torch.ones(1, *SHAPE)
    seen[:, :12] = 0
    spoilt = fixed.clone()
    spoilt[:, :, :12] = torch.rand(fixed[:, :, :12].shape, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros_like(true)
    one = refine(zero, fixed, moving, seen, EVERYTHING[1], Loss(), 20)
    other = refine(zero, spoilt, moving, seen, EVERYTHING[1], Loss(), 20)
    torch.testing.assert_close(one.flow, other.flow, atol=1e-4, rtol=0)
    nothing = refine(zero, fixed, moving, torch.zeros(1, *SHAPE), EVERYTHING[1], Loss(), 5)
    assert torch.equal(nothing.flow, zero)


def test_a_folding_field_folds_less_afterwards(pair) -> None:
    fixed, moving, true = pair
    rng = np.random.default_rng(1)
    folded = true + torch.from_numpy(np.stack([5 * smooth_noise(rng, SHAPE, 2.5) for _ in range(3)]).astype(np.float32))
    before = (warping.jacobian_determinant(folded) <= 0).float().mean()
    assert before > 0.001
    found = refine(folded, fixed, moving, *EVERYTHING, Loss(), 60)
    assert (warping.jacobian_determinant(found.flow) <= 0).float().mean() < before
    assert found.after < found.before


def test_it_works_where_gradients_are_switched_off(pair) -> None:
    fixed, moving, true = pair
    with torch.inference_mode():
        found = refine(torch.zeros_like(true), fixed.clone(), moving.clone(), *EVERYTHING, Loss(), 20)
    assert found.after < found.before


def test_shapes_that_do_not_belong_together_are_refused(pair) -> None:
    fixed, moving, true = pair
    with pytest.raises(ValueError, match="expected"):
        refine(true[:, :2], fixed, moving, *EVERYTHING, Loss(), 1)
