"""The selective scan against a loop over time, and against the compiled one where that is installed."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmreg.networks.mambamorph import selective_scan as scans
from llmreg.networks.mambamorph.selective_scan import selective_scan


def scan_by_loop(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    state, outputs = torch.zeros(len(u), *a.shape, device=u.device), []
    for t in range(u.shape[1]):
        decay = torch.exp(delta[:, t, :, None] * a)
        state = decay * state + (delta[:, t] * u[:, t])[..., None] * b[:, t, None]
        outputs.append((state * c[:, t, None]).sum(-1) + d * u[:, t])
    return torch.stack(outputs, dim=1)


def inputs(seed: int, batch: int, length: int, channels: int, states: int, largest: float = 2.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    delta = largest * torch.rand(batch, length, channels, generator=generator)
    a = -torch.exp(normal(channels, states))
    u, b, c = normal(batch, length, channels), normal(batch, length, states), normal(batch, length, states)
    return [value.requires_grad_() for value in (u, delta, a, b, c, normal(channels))]


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 2),
    length=st.integers(1, 140),
    channels=st.integers(1, 3),
    states=st.integers(1, 3),
    held_numbers=st.sampled_from([1, 400, 2**22]),
)
def test_values_and_gradients_are_those_of_a_loop(
    seed: int, batch: int, length: int, channels: int, states: int, held_numbers: int
) -> None:
    arguments = inputs(seed, batch, length, channels, states)
    weights = torch.randn(batch, length, channels, generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        # Blocks of one chunk, of several, and a single one.
        patch.setattr(scans, "HELD_NUMBERS", held_numbers)
        scanned = selective_scan(*arguments)
        gradients = torch.autograd.grad((scanned * weights).sum(), arguments)
    expected = scan_by_loop(*arguments)
    torch.testing.assert_close(scanned, expected, rtol=1e-4, atol=1e-4)
    for gradient, expected_gradient in zip(
        gradients, torch.autograd.grad((expected * weights).sum(), arguments), strict=True
    ):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-3)


def test_large_steps_forget_without_overflow() -> None:
    arguments = inputs(0, 1, 70, 2, 3, largest=500.0)
    scanned = selective_scan(*arguments)
    torch.testing.assert_close(scanned, scan_by_loop(*arguments), rtol=1e-4, atol=1e-3)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(scanned.sum(), arguments))


@pytest.mark.skipif(
    find_spec("mamba_ssm") is None or not torch.cuda.is_available(), reason="needs mamba_ssm and a CUDA GPU"
)
def test_the_compiled_scan_is_used_and_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [value.detach().cuda().requires_grad_() for value in inputs(0, 2, 100, 8, 16)]
    scanned = selective_scan(*arguments)
    gradients = torch.autograd.grad(scanned.sum(), arguments)
    monkeypatch.setattr(scans, "fused_scan", lambda: None)
    plain = selective_scan(*arguments)
    torch.testing.assert_close(scanned, plain, rtol=1e-3, atol=1e-3)
    for gradient, expected in zip(gradients, torch.autograd.grad(plain.sum(), arguments), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-2, atol=1e-2)
