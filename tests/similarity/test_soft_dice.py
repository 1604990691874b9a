from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from llmreg.similarity.soft_dice import soft_dice

SHAPE = (9, 12, 7)


def one_hot_dice(moving: Tensor, fixed: Tensor, flow: Tensor, labels: Tensor, counted: Tensor | None = None) -> Tensor:
    """Soft Dice per sample and label by one-hot volumes and grid_sample, NaN where a label is absent.

    The sums run over the counted voxels of the fixed volume.
    """
    shape = moving.shape[1:]
    axes = [torch.arange(length, dtype=flow.dtype) for length in shape]
    position = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1) + flow.movedim(1, -1)
    grid = 2 * position / (torch.tensor(shape[::-1], dtype=flow.dtype) - 1) - 1
    moving_hot = torch.stack([moving == label for label in labels], 1).to(flow.dtype)
    fixed_hot = torch.stack([fixed == label for label in labels], 1).to(flow.dtype)
    warped = functional.grid_sample(moving_hot, grid, align_corners=True, padding_mode="zeros")
    if counted is not None:
        warped, fixed_hot = warped * counted[:, None], fixed_hot * counted[:, None]
    dice = 2 * (warped * fixed_hot).sum((2, 3, 4)) / (warped.sum((2, 3, 4)) + fixed_hot.sum((2, 3, 4)) + 1e-6)
    absent = (moving_hot.sum((2, 3, 4)) == 0) | (fixed_hot.sum((2, 3, 4)) == 0)
    return torch.where(absent, torch.nan, dice)


def label_volume(count: int, seed: int, batch: int = 2, block: int = 2) -> Tensor:
    """Blocks of random labels, so that there are both uniform and mixed cells."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, count + 1, (batch, *(-(-length // block) for length in SHAPE)), generator=generator)
    for axis in (1, 2, 3):
        coarse = coarse.repeat_interleave(block, dim=axis)
    return coarse[:, : SHAPE[0], : SHAPE[1], : SHAPE[2]].contiguous()


def random_flow(scale: float, seed: int, shape: tuple[int, ...] = SHAPE, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *shape, generator=torch.Generator().manual_seed(seed)) * scale


def assert_matches(moving: Tensor, fixed: Tensor, flow: Tensor, labels: Tensor, counted: Tensor | None = None) -> None:
    ours, exact = flow.clone().requires_grad_(), flow.double().requires_grad_()
    loss, per_label = soft_dice(moving, fixed, ours, labels, counted)
    expected = one_hot_dice(moving.long(), fixed.long(), exact, labels, counted)
    expected_loss = (1 - expected.nanmean(dim=1)).nanmean()
    loss.backward()
    expected_loss.backward()
    assert ours.grad is not None
    assert exact.grad is not None
    assert loss.dtype == torch.float32
    assert not per_label.requires_grad
    assert float(loss.detach()) == pytest.approx(float(expected_loss.detach()), abs=1e-5)
    torch.testing.assert_close(per_label.double(), expected.detach().nanmean(dim=0), atol=1e-5, rtol=0, equal_nan=True)
    largest = float(exact.grad.abs().max())
    # The floor: inside a structure the exact gradient is rounding, ours is zero.
    torch.testing.assert_close(ours.grad.double(), exact.grad, atol=max(1e-5 * largest, 1e-12), rtol=0)


@pytest.mark.parametrize("count", [1, 4, 35])
@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_equals_one_hot(count: int, block: int, dtype: torch.dtype) -> None:
    moving, fixed = label_volume(count, 1, block=block).to(dtype), label_volume(count, 2, block=block).to(dtype)
    assert_matches(moving, fixed, random_flow(1.3, 3), torch.arange(1, count + 1))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**20), scale=st.sampled_from([0.2, 2.0, 15.0, 1e3]), count=st.integers(1, 6))
def test_equals_one_hot_beyond_the_border(seed: int, scale: float, count: int) -> None:
    flow = random_flow(scale, seed + 2)
    flow[:, :, 4, 6, 3] = 0.25  # something stays inside, whatever the scale
    moving, fixed = label_volume(count, seed), label_volume(count, seed + 1)
    moving[:, 4:6, 6:8, 3:5] = 1
    fixed[:, 4, 6, 3] = 1
    assert_matches(moving, fixed, flow, torch.arange(1, count + 1))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**20), share=st.sampled_from([0.02, 0.5, 0.98]), count=st.sampled_from([1, 5, 254, 260]))
def test_only_the_counted_voxels_are_summed(seed: int, share: float, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    counted = torch.rand((2, *SHAPE), generator=generator) < share
    # One structure that both samples have, and that is counted.
    moving, fixed, flow = label_volume(count, seed), label_volume(count, seed + 1), random_flow(1.3, seed + 2)
    moving[:, 3:7, 5:9, 2:5] = 1
    fixed[:, 5, 7, 3], counted[:, 5, 7, 3] = 1, True
    assert_matches(moving, fixed, flow, torch.arange(1, count + 1), counted)


def test_what_does_not_count_may_be_anything() -> None:
    moving, fixed, labels = label_volume(4, 1), label_volume(4, 2), torch.arange(1, 5)
    flow, counted = random_flow(1.0, 3), torch.rand((2, *SHAPE), generator=torch.Generator().manual_seed(4)) < 0.6
    other, wild = fixed.clone(), flow.clone()
    other[~counted] = label_volume(4, 5)[~counted]
    wild[:, 2][~counted] = float("nan")
    wild.requires_grad_()
    loss, per_label = soft_dice(moving, other, wild, labels, counted)
    expected, expected_per_label = soft_dice(moving, fixed, flow, labels, counted)
    assert float(loss.detach()) == pytest.approx(float(expected), abs=1e-7)
    torch.testing.assert_close(per_label, expected_per_label)
    loss.backward()
    assert wild.grad is not None
    assert not wild.grad.movedim(1, -1)[~counted].any()
    assert wild.grad.isfinite().all()
    nothing, _ = soft_dice(moving, fixed, flow, labels, torch.zeros_like(counted))
    assert float(nothing) == 0.0


def test_labels_that_are_absent_or_not_annotated_do_not_count() -> None:
    moving, fixed = label_volume(6, 1), label_volume(6, 2)
    moving[moving == 2] = 0
    fixed[0][fixed[0] == 3] = 0  # in one sample only
    labels = torch.tensor([5, 2, 3, 1, 400])  # 4 and 6 are not annotated
    assert_matches(moving, fixed, random_flow(0.8, 3), labels)
    _, per_label = soft_dice(moving, fixed, random_flow(0.8, 3), labels)
    assert per_label.isnan().tolist() == [False, True, False, False, True]


def test_sparse_and_many_ids() -> None:
    moving, fixed = label_volume(4, 1) * 700, label_volume(4, 2) * 700
    assert_matches(moving, fixed, random_flow(0.8, 3), torch.tensor([700, 2800, 1400]))
    moving, fixed = label_volume(300, 1), label_volume(300, 1)
    assert_matches(moving, fixed, random_flow(0.8, 3), torch.arange(1, 301))
    assert_matches(moving, fixed, random_flow(0.8, 3), torch.arange(1, 255))


def test_nothing_present_is_zero_with_zero_gradient() -> None:
    flow = random_flow(1.0, 1).requires_grad_()
    for labels in (torch.tensor([9]), torch.tensor([], dtype=torch.long)):
        loss, _ = soft_dice(label_volume(3, 1), label_volume(3, 2), flow, labels)
        (gradient,) = torch.autograd.grad(loss, flow)
        assert float(loss.detach()) == 0.0
        assert not gradient.any()


def test_a_sample_without_labels_does_not_count() -> None:
    moving, fixed, flow = label_volume(3, 1), label_volume(3, 2), random_flow(1.0, 3)
    moving[1] = 0
    labels = torch.arange(1, 4)
    batch_loss, _ = soft_dice(moving, fixed, flow, labels)
    first_loss, _ = soft_dice(moving[:1], fixed[:1], flow[:1], labels)
    assert float(batch_loss) == pytest.approx(float(first_loss), abs=1e-7)


def test_zero_flow_between_equal_volumes_is_perfect() -> None:
    volume = label_volume(5, 1)
    loss, per_label = soft_dice(volume, volume, torch.zeros(2, 3, *SHAPE), torch.arange(1, 6))
    assert float(loss) == pytest.approx(0.0, abs=1e-6)
    assert per_label.tolist() == pytest.approx([1.0] * 5, abs=1e-6)


def test_gradient_by_finite_differences() -> None:
    moving, fixed, labels = label_volume(3, 1, batch=1), label_volume(3, 2, batch=1), torch.arange(1, 4)
    flow = (random_flow(1.0, 3, batch=1).floor() + 0.5).requires_grad_()  # off the kinks at whole displacements
    soft_dice(moving, fixed, flow, labels)[0].backward()
    assert flow.grad is not None
    direction = random_flow(1.0, 4, batch=1)
    step = 0.02
    with torch.no_grad():
        ahead, _ = soft_dice(moving, fixed, flow + step * direction, labels)
        behind, _ = soft_dice(moving, fixed, flow - step * direction, labels)
    assert float((flow.grad * direction).sum()) == pytest.approx(float(ahead - behind) / (2 * step), rel=2e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e12, -3e38])
def test_a_wild_displacement_counts_as_outside(bad: float) -> None:
    moving, fixed, labels = label_volume(3, 1), label_volume(3, 2), torch.arange(1, 4)
    flow = random_flow(1.0, 3)
    far = flow.clone()
    flow[:, 1, 2:5], far[:, 1, 2:5] = bad, 1e4
    loss, _ = soft_dice(moving, fixed, flow.requires_grad_(), labels)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(soft_dice(moving, fixed, far, labels)[0]), abs=1e-7)
    assert flow.grad is not None
    assert flow.grad.isfinite().all()


def test_bfloat16_flow_gets_its_gradient_in_bfloat16() -> None:
    flow = random_flow(1.0, 3).bfloat16().requires_grad_()
    soft_dice(label_volume(3, 1), label_volume(3, 2), flow, torch.arange(1, 4))[0].backward()
    assert flow.grad is not None
    assert flow.grad.dtype == torch.bfloat16


def test_chunks_of_a_large_volume_change_nothing() -> None:
    shape = (70, 34, 33)
    generator = torch.Generator().manual_seed(1)
    moving, fixed = (torch.randint(0, 3, (1, *shape), generator=generator) for _ in range(2))
    flow = (torch.randn(1, 3, *shape, generator=generator) * 1.5).requires_grad_()
    labels = torch.tensor([1, 2])
    loss, _ = soft_dice(moving, fixed, flow, labels)
    exact = flow.detach().double().requires_grad_()
    expected = 1 - one_hot_dice(moving, fixed, exact, labels).mean()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    gradients = [torch.autograd.grad(value, leaf)[0].double() for value, leaf in ((loss, flow), (expected, exact))]
    torch.testing.assert_close(*gradients, atol=1e-5 * float(gradients[1].abs().max()), rtol=0)


def test_wrong_input_is_refused() -> None:
    volume, flow = label_volume(3, 1), random_flow(1.0, 3)
    with pytest.raises(ValueError, match="flow"):
        soft_dice(volume, volume, flow[:, :, 1:], torch.tensor([1]))
    with pytest.raises(ValueError, match="positive"):
        soft_dice(volume, volume, flow, torch.tensor([0, 1]))
