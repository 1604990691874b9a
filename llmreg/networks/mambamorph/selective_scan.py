"""The selective scan of state-space models, in plain PyTorch and in bounded memory."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from llmreg.networks.fast_layers import call_with_checkpointing

# A chunk has this number of steps. They are taken one after the other, for all chunks of a block at once.
CHUNK = 32
# The states of a block have at most about this number of values.
HELD_NUMBERS = 2**21


def selective_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """A linear recurrence whose coefficients depend on the token, in float32.

    For each channel, h_t = exp(delta_t a) h_(t-1) + delta_t b_t u_t and y_t = c_t h_t + d u_t, with h of N numbers.
    On a GPU, ``mamba_ssm`` computes it where that is installed.
    Reference: Gu and Dao, Mamba: Linear-time sequence modeling with selective state spaces, 2023.

    Args:
        u: tokens (B, L, D).
        delta: step sizes (B, L, D), above 0.
        a: (D, N), below 0.
        b: (B, L, N).
        c: (B, L, N).
        d: (D).

    Returns:
        y, (B, L, D).
    """
    with torch.autocast(u.device.type, enabled=False):
        u, delta, a, b, c, d = (value.float() for value in (u, delta, a, b, c, d))
        fused = fused_scan() if u.is_cuda else None
        if fused is not None:
            along = [value.transpose(1, 2).contiguous() for value in (u, delta, b, c)]
            return fused(along[0], along[1], a, along[2], along[3], d).transpose(1, 2)
        return _scan_in_blocks(u, delta, a, b, c) + d * u


@cache
def fused_scan() -> Callable[..., Tensor] | None:
    """The compiled scan of ``mamba_ssm``, where that is installed."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None
    return cast(Callable[..., Tensor], selective_scan_fn)


def _scan_in_blocks(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Compute the part of y that comes from the states, block by block; only the last state of each block is kept."""
    length = u.shape[1]
    # The padded steps have size 0 and leave the state as it is.
    u, delta, b, c = (torch.nn.functional.pad(value, (0, 0, 0, -length % CHUNK)) for value in (u, delta, b, c))
    state = u.new_zeros(len(u), *a.shape)
    size = max(1, HELD_NUMBERS // state.numel() // CHUNK) * CHUNK
    outputs = []
    for parts in zip(*(value.split(size, dim=1) for value in (u, delta, b, c)), strict=True):
        y, state = call_with_checkpointing(_scan_block, state, a, *parts, when=torch.is_grad_enabled())
        outputs.append(y)
    return torch.cat(outputs, dim=1)[:, :length]


def _scan_block(state: Tensor, a: Tensor, u: Tensor, delta: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Compute y of a block and its last state, from the state before the block."""
    decay = torch.exp(delta[..., None] * a)
    states = _Recurrence.apply(decay, (delta * u)[..., None] * b[:, :, None], state)  # type: ignore[no-untyped-call]
    # A view of the last state would keep all states in memory.
    return (states @ c[..., None])[..., 0], states[:, -1].clone()


class _Recurrence(torch.autograd.Function):
    """States (B, L, D, N) of state_t = decay_t state_(t-1) + drive_t, elementwise."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, drive: Tensor, start: Tensor) -> Tensor:
        states = _run_recurrence(decay, drive, start, range(CHUNK))
        ctx.save_for_backward(decay, states, start)
        return states

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        decay, states, start = ctx.saved_tensors
        # A state's total gradient is its own plus that of the next state, which decays on its way back.
        after = torch.cat([decay[:, 1:], torch.zeros_like(decay[:, :1])], dim=1)
        total = _run_recurrence(after, gradient, torch.zeros_like(start), range(CHUNK)[::-1])
        before = torch.cat([start[:, None], states[:, :-1]], dim=1)
        return total * before, total, total[:, 0] * decay[:, 0]


def _run_recurrence(decay: Tensor, drive: Tensor, start: Tensor, steps: Sequence[int]) -> Tensor:
    """Compute the states forwards in time, or backwards in time when ``steps`` descends."""
    chunks = decay.shape[1] // CHUNK
    decay, drive = (value.reshape(len(value), chunks, CHUNK, *value.shape[2:]) for value in (decay, drive))
    # These are the last state of each chunk as if it started at zero, and the share of its first state that remains.
    end, remaining = torch.zeros_like(drive[:, :, 0]), torch.ones_like(decay[:, :, 0])
    for step in steps:
        end.mul_(decay[:, :, step]).add_(drive[:, :, step])
        remaining.mul_(decay[:, :, step])
    state, starts = start, torch.empty_like(end)
    for chunk in range(chunks) if steps[0] == 0 else reversed(range(chunks)):
        starts[:, chunk] = state
        state = torch.addcmul(end[:, chunk], remaining[:, chunk], state)
    states, state = torch.empty_like(drive), starts
    for step in steps:
        state = torch.addcmul(drive[:, :, step], decay[:, :, step], state)
        states[:, :, step] = state
    return states.flatten(1, 2)
