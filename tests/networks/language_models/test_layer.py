"""Who sees whom in a frozen layer, what its tokens know of their place, and what of it learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llmreg.networks.language_models.layer import FrozenLayer, merge_lora
from llmreg.networks.language_models.llm_settings import LLMSettings, LoRASettings
from llmreg.networks.language_models.loading import build_layers
from llmreg.networks.language_models.reading import read_layers

GRID = (2, 3, 2)
TOKENS = 12


def _layer(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    grid: Sequence[int] = GRID,
    **changes: object,
) -> FrozenLayer:
    settings = LLMSettings(**({"source": str(folder), "layers": (1,), "lora": None} | changes))
    return FrozenLayer(build_layers(read_layers(str(folder), (1,)), dtype), 0, settings, grid)


def _out(layer: FrozenLayer, hidden: Tensor) -> Tensor:
    with torch.no_grad():
        return layer(hidden)


def _output_change(layer: FrozenLayer, first: Tensor, second: Tensor, token: int = 0) -> float:
    """How much the output of a token differs between two inputs."""
    return (_out(layer, first) - _out(layer, second))[:, token].abs().max().item()


# --- attention


@pytest.mark.parametrize(
    ("family", "rotary"), [(f, r) for f in ("llama", "gemma2") for r in ("none", "1d", "3d")] + [("gpt2", "none")]
)
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_the_first_token_sees_later_ones_only_if_bidirectional(
    tiny_model: Callable[[str], Path], family: str, attention: str, rotary: str
) -> None:
    layer = _layer(tiny_model(family), attention=attention, rotary=rotary)
    hidden = torch.randn(1, TOKENS, 64)
    changed = torch.cat([hidden[:, :1], torch.randn(1, TOKENS - 1, 64)], dim=1)
    difference = _output_change(layer, hidden, changed)
    assert difference > 1e-3 if attention == "bidirectional" else difference < 1e-5
    assert _output_change(layer, hidden, changed, token=3) > 1e-3


def test_bidirectional_attention_reaches_beyond_a_sliding_window(tiny_model: Callable[[str], Path]) -> None:
    """The tiny mistral's window is 4 tokens: the last of 12 sees the first only without the causal mask."""
    first = torch.randn(1, TOKENS, 64)
    second = torch.cat([torch.randn(1, 1, 64), first[:, 1:]], dim=1)
    far = {
        attention: _output_change(_layer(tiny_model("mistral"), attention=attention), first, second, token=TOKENS - 1)
        for attention in ("bidirectional", "causal")
    }
    assert far["causal"] < 1e-5 < 1e-3 < far["bidirectional"]


# --- rotary


def _swap(hidden: Tensor, first: int, second: int) -> Tensor:
    order = list(range(hidden.shape[1]))
    order[first], order[second] = second, first
    return hidden[:, order]


def test_without_rotary_the_order_of_tokens_means_nothing(tiny_llama: Path) -> None:
    hidden = torch.randn(1, TOKENS, 64)
    shuffled = torch.cat([hidden[:, :1], hidden[:, torch.randperm(TOKENS - 1) + 1]], dim=1)
    assert _output_change(_layer(tiny_llama, rotary="none"), hidden, shuffled) < 1e-4
    for rotary in ("1d", "3d"):
        assert _output_change(_layer(tiny_llama, rotary=rotary), hidden, hidden.flip(1).roll(1, 1)) > 1e-3


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_3d_rotary_tells_apart_tokens_that_differ_along_one_axis(tiny_llama: Path, axis: int) -> None:
    grid = (3, 3, 3)
    numbers = torch.arange(27).reshape(grid)
    # Neighbours of token 0 along one axis, one and two steps away, change places.
    near, far = (int(numbers[tuple(step if a == axis else 0 for a in range(3))]) for step in (1, 2))
    hidden = torch.randn(1, 27, 64)
    swapped = _swap(hidden, near, far)
    assert _output_change(_layer(tiny_llama, grid=grid, rotary="3d"), hidden, swapped) > 1e-3
    assert _output_change(_layer(tiny_llama, grid=grid, rotary="none"), hidden, swapped) < 1e-4


@pytest.mark.parametrize("rotary", ["1d", "3d"])
def test_only_differences_of_positions_matter(tiny_llama: Path, rotary: str) -> None:
    """Angles of a box inside a larger grid do what those of the box at its corner do."""
    large = _layer(tiny_llama, grid=(6, 6, 6), rotary=rotary)
    boxes = torch.arange(216).reshape(6, 6, 6)
    corner, shifted = boxes[:2, :3, :2].flatten(), boxes[3:5, 1:4, 4:].flatten()
    hidden = torch.randn(1, TOKENS, 64)

    def output_at(at: Tensor) -> Tensor:
        box = _layer(tiny_llama, rotary=rotary)
        box.cos, box.sin = large.cos[:, at], large.sin[:, at]
        return _out(box, hidden)

    torch.testing.assert_close(output_at(corner), output_at(shifted), rtol=1e-4, atol=1e-4)
    assert (output_at(corner) - output_at(corner.flip(0).roll(1))).abs().max() > 1e-3
    if rotary == "3d":
        assert torch.equal(output_at(corner), _out(_layer(tiny_llama, rotary="3d"), hidden))


def test_each_axis_turns_a_third_of_the_frequencies(tiny_llama: Path) -> None:
    """Heads of 16 channels have 8 frequencies: 0, 3, 6 follow d, 1, 4, 7 follow h and 2, 5 follow w."""
    frequencies = 10000.0 ** (-torch.arange(8) / 8)
    for axis, turned in enumerate(([0, 3, 6], [1, 4, 7], [2, 5])):
        grid = [1, 1, 1]
        grid[axis] = 5
        layer = _layer(tiny_llama, grid=grid, rotary="3d")
        angles = torch.zeros(5, 8)
        angles[:, turned] = torch.arange(5)[:, None] * frequencies[turned]
        torch.testing.assert_close(layer.cos[0], angles.cos().repeat(1, 2))
        torch.testing.assert_close(layer.sin[0], angles.sin().repeat(1, 2))


def test_1d_rotary_counts_the_flattened_tokens(tiny_llama: Path) -> None:
    flat, line = (_layer(tiny_llama, grid=grid, rotary="1d") for grid in (GRID, (1, 1, TOKENS)))
    angles = torch.arange(TOKENS)[:, None] * 10000.0 ** (-torch.arange(8) / 8)
    torch.testing.assert_close(flat.cos[0], angles.cos().repeat(1, 2))
    assert torch.equal(flat.sin, line.sin)


def test_the_unused_scale_of_old_checkpoints_is_loaded(tiny_llama: Path) -> None:
    layer, hidden = _layer(tiny_llama), torch.randn(1, TOKENS, 64)
    before = _out(layer, hidden)
    layer.load_state_dict(layer.state_dict() | {"scale": torch.tensor(3.0)})
    assert torch.equal(_out(layer, hidden), before)
    with torch.no_grad():
        assert torch.equal(layer(hidden), before)


# --- what learns


def test_untrained_lora_changes_nothing_and_trained_lora_does(tiny_llama: Path) -> None:
    bare, adapted = _layer(tiny_llama), _layer(tiny_llama, lora=LoRASettings(r=4, alpha=4))
    hidden = torch.randn(2, TOKENS, 64)
    with torch.no_grad():
        assert torch.equal(bare(hidden), adapted(hidden))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
        assert not torch.allclose(bare(hidden), adapted(hidden), atol=1e-2)


def test_lora_is_the_papers_wx_plus_bax(tiny_llama: Path) -> None:
    projection = _layer(tiny_llama, lora=LoRASettings(r=4, alpha=8)).layer.self_attn.q_proj
    a, b = projection.lora_A["default"].weight, projection.lora_B["default"].weight
    with torch.no_grad():
        b.normal_()
        x = torch.randn(3, 64)
        expected = x @ (projection.base_layer.weight + (8 / 4) * b @ a).T
        torch.testing.assert_close(projection(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_frozen_weights_keep_type_and_get_no_gradient(
    tiny_model: Callable[[str], Path], family: str, dtype: torch.dtype, autocast: bool
) -> None:
    layer = _layer(tiny_model(family), dtype, lora=LoRASettings(r=4, alpha=4)).train()
    before = {name: p.clone() for name, p in layer.named_parameters()}
    tokens = torch.randn(1, TOKENS, 64, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output = layer(tokens)
    assert output.dtype == torch.float32
    output.square().sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.abs().sum() > 0
    for name, parameter in layer.named_parameters():
        frozen = "lora_" not in name
        assert parameter.requires_grad != frozen, name
        assert parameter.dtype == (dtype if frozen else torch.float32), name
        assert (parameter.grad is None) == frozen, name
        assert torch.equal(parameter, before[name]), name
    learning = [p for name, p in layer.named_parameters() if "lora_B" in name]
    assert len(learning) == 3
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learning)


@pytest.mark.parametrize("family", ["llama", "phi3"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_merged_lora_gives_the_same_and_can_be_undone(
    tiny_model: Callable[[str], Path], family: str, dtype: torch.dtype, tolerance: float
) -> None:
    layer = _layer(tiny_model(family), dtype, lora=LoRASettings(r=4, alpha=8))
    for name, parameter in layer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    hidden = torch.randn(1, TOKENS, 64)
    bare = _out(_layer(tiny_model(family), dtype), hidden).float()
    adapted, names = _out(layer, hidden).float(), list(layer.state_dict())
    undo = merge_lora(layer)
    assert undo is not None
    assert not [name for name in layer.state_dict() if "lora" in name]
    merged = _out(layer, hidden).float()
    scale = adapted.abs().max()
    assert (merged - adapted).abs().max() < tolerance * scale < (bare - adapted).abs().max()
    undo()
    assert list(layer.state_dict()) == names
    assert torch.equal(_out(layer, hidden).float(), adapted)


def test_a_layer_without_lora_has_nothing_to_merge(tiny_llama: Path) -> None:
    assert merge_lora(_layer(tiny_llama)) is None
