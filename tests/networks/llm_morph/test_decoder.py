"""The network against a plain one, written from the paper's description with the same weights.

The plain network uses nothing of llmreg: no layer, no warping, no shuffling. It tells moving from fixed by their names
alone, so that a part that takes the one for the other gives another field. Cost volumes are compared with loops over
voxels and steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from llmreg.networks.factory import build_network
from llmreg.networks.layers import FieldHead
from llmreg.networks.llm_morph.decoder import DILATION, SCALE, StageAdapter, cost_volume, voxel_shuffle
from llmreg.networks.llm_morph.plugin import LLMMorphSettings, cost_channels
from llmreg.similarity.mind import mind_ssc

SHAPE = (32, 16, 48)
Weights = Mapping[str, Tensor]


def warp(image: Tensor, flow: Tensor, outside: str = "zeros") -> Tensor:
    """Sample an image at index + flow."""
    shape = torch.tensor(image.shape[2:], dtype=torch.float32)
    axes = torch.meshgrid(*(torch.arange(size, dtype=torch.float32) for size in image.shape[2:]), indexing="ij")
    x, y, z = (axes[2 - axis] + flow[:, axis] for axis in range(3))
    places = torch.stack([x, y, z], dim=-1) * 2 / (shape.flip(0) - 1) - 1
    return functional.grid_sample(image, places, padding_mode=outside, align_corners=True)


def double(flow: Tensor) -> Tensor:
    """The same displacement on the grid that is twice as fine."""
    return 2 * functional.interpolate(flow, scale_factor=2, mode="trilinear", align_corners=False)


def conv_block(features: Tensor, weights: Weights, name: str, stride: int = 1) -> Tensor:
    """Convolution, instance normalization, LeakyReLU(0.2)."""
    features = functional.conv3d(features, weights[f"{name}.conv.weight"], stride=stride, padding=1)
    features = functional.instance_norm(
        features, weight=weights[f"{name}.norm.weight"], bias=weights[f"{name}.norm.bias"]
    )
    return functional.leaky_relu(features, 0.2)


def encode(image: Tensor, weights: Weights, name: str) -> list[Tensor]:
    """Five levels: two convolutions, three times three of which the first halves the image, and one that halves it."""
    features = image
    pyramid = []
    for level, count in enumerate((2, 3, 3, 3, 1)):
        for index in range(count):
            block = f"{name}.levels.{level}" + (f".{index}" if count > 1 else "")
            features = conv_block(features, weights, block, stride=2 if level and not index else 1)
        pyramid.append(features)
    return pyramid


def encode_tokens(tokens: Tensor, weights: Weights, block: int) -> Tensor:
    """Adapter_0 (Linear, InstanceNorm over the tokens, LeakyReLU, Linear) and an RMSNorm."""
    name = f"blocks.{block}"
    hidden = functional.linear(
        tokens, weights[f"{name}.adapter.widen.weight"], weights[f"{name}.adapter.widen.bias"]
    ).transpose(1, 2)
    hidden = functional.instance_norm(
        hidden, weight=weights[f"{name}.adapter.weight"], bias=weights[f"{name}.adapter.bias"]
    )
    hidden = functional.leaky_relu(hidden, 0.2).transpose(1, 2)
    tokens = functional.linear(
        hidden, weights[f"{name}.adapter.project.weight"], weights[f"{name}.adapter.project.bias"]
    )
    return tokens / (tokens.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights[f"{name}.norm.weight"]


def spread(tokens: Tensor, grid: tuple[int, ...], weights: Weights, stage: int) -> Tensor:
    """Adapter_j: Linear, voxel-shuffle by 2^(4-j), transposed convolution."""
    name, factor = f"adapters.{stage - 1}", 2 ** (4 - stage)
    values = functional.linear(tokens, weights[f"{name}.linear.weight"], weights[f"{name}.linear.bias"])
    volume = values.transpose(1, 2).unflatten(2, grid)
    channels = volume.shape[1] // factor**3
    shuffled = torch.zeros(1, channels, *(size * factor for size in grid))
    for z in range(factor):
        for y in range(factor):
            for x in range(factor):
                first = (z * factor + y) * factor + x
                shuffled[:, :, z::factor, y::factor, x::factor] = volume[:, first :: factor**3]
    return functional.conv_transpose3d(shuffled, weights[f"{name}.up.weight"], weights[f"{name}.up.bias"], stride=2)


def decode(adapted: list[Tensor], moving: list[Tensor], fixed: list[Tensor], image: Tensor, weights: Weights) -> Tensor:
    """Stages S4 to S1; ``image`` is the moving image."""

    def fuse(stage: int, *parts: Tensor) -> Tensor:
        features = torch.cat([*parts, adapted[stage - 1], moving[stage - 1], fixed[stage - 1]], dim=1)
        for index in range(2):
            features = conv_block(features, weights, f"decoder.stages.{stage}.{index}")
        return features

    def enlarge(stage: int, features: Tensor) -> Tensor:
        name = f"decoder.ups.{stage}"
        return functional.conv_transpose3d(features, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=2)

    def predict_field(stage: int, features: Tensor) -> Tensor:
        name = f"decoder.heads.{stage}"
        return functional.conv3d(features, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    features = fuse(3, enlarge(3, fuse(4)))
    flow = predict_field(3, features)
    for stage in (2, 1):
        coarse = double(flow)
        smaller = functional.avg_pool3d(image, 2 ** (stage - 1)) if stage > 1 else image
        features = fuse(stage, enlarge(stage, features), warp(smaller, coarse), coarse)
        residual = predict_field(stage, features)
        # A point first moves by the residual, then by the coarse field at the place where it is then.
        flow = residual + warp(coarse, residual, outside="border")
    return flow


def plain_network(moving: Tensor, fixed: Tensor, weights: Weights) -> Tensor:
    """The whole network with adapters as its only encoding blocks."""
    moving_features, fixed_features = encode(moving, weights, "moving_encoder"), encode(fixed, weights, "fixed_encoder")
    deepest = torch.cat([moving_features[4], fixed_features[4]], dim=1)
    tokens = deepest.flatten(2).transpose(1, 2) + weights["position_embedding"]
    for block in range(2):
        tokens = encode_tokens(tokens, weights, block)
    adapted = [spread(tokens, tuple(deepest.shape[2:]), weights, stage) for stage in (1, 2, 3, 4)]
    return decode(adapted, moving_features, fixed_features, moving, weights)


def test_the_network_is_that_of_the_paper() -> None:
    torch.manual_seed(0)
    network = build_network(LLMMorphSettings(width=2, blocks="adapters", token_width=32), SHAPE).eval()
    for module in network.modules():
        if isinstance(module, FieldHead):
            nn.init.normal_(module.weight, std=0.1)
    coarse = torch.rand(2, 1, 8, 4, 12)
    moving, fixed = functional.interpolate(coarse, size=SHAPE, mode="trilinear")[:, None]
    with torch.no_grad():
        weights = dict(network.state_dict())
        flow, expected = network(moving, fixed), plain_network(moving, fixed, weights)
        swapped = plain_network(fixed, moving, weights)
    torch.testing.assert_close(flow, expected, rtol=1e-3, atol=1e-3)
    assert flow.abs().mean() > 0.1
    # The comparison tells moving from fixed.
    assert (flow - swapped).abs().mean() > 0.02


@pytest.mark.parametrize("role", ["moving", "fixed"])
def test_each_image_has_an_encoder_of_its_own(role: str) -> None:
    torch.manual_seed(0)
    network = build_network(LLMMorphSettings(width=2, blocks="none"), (16, 16, 16))
    images = {name: torch.rand(1, 1, 16, 16, 16) for name in ("moving", "fixed")}
    encoder_inputs: list[Tensor] = []
    encoder: nn.Module = getattr(network, f"{role}_encoder")
    encoder.register_forward_pre_hook(lambda _, inputs: encoder_inputs.append(inputs[0]))
    network(images["moving"], images["fixed"])
    assert len(encoder_inputs) == 1
    assert torch.equal(encoder_inputs[0], images[role])


def test_cost_volumes_compare_the_warped_moving_image_with_the_fixed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """At each stage, the first image of a cost volume is the moving one as the field so far warps it."""
    compared: list[tuple[Tensor, Tensor]] = []

    def record(moving: Tensor, fixed: Tensor, radius: int) -> Tensor:
        compared.append((moving, fixed))
        return torch.zeros(1, 27, *moving.shape[2:])

    monkeypatch.setattr("llmreg.networks.llm_morph.decoder.cost_volume", record)
    network = build_network(LLMMorphSettings(width=2, blocks="none", cost_volume=1), (16, 16, 16)).eval()
    for stage, value in (("3", 0.5), ("2", 1.0), ("1", 0.0)):
        nn.init.zeros_(network.get_parameter(f"decoder.heads.{stage}.weight"))
        network.get_parameter(f"decoder.heads.{stage}.bias").data = torch.tensor([value, 0.0, 0.0])
    moving, fixed = torch.rand(2, 1, 1, 16, 16, 16)
    with torch.no_grad():
        network(moving, fixed)
    for (seen_moving, seen_fixed), factor, pixels in zip(compared, (4, 2, 1), (0, 1, 4), strict=True):
        smaller_moving, smaller_fixed = (
            functional.avg_pool3d(image, factor) if factor > 1 else image for image in (moving, fixed)
        )
        assert torch.equal(seen_fixed, smaller_fixed)
        torch.testing.assert_close(
            seen_moving[..., : -pixels or None], smaller_moving[..., pixels:], rtol=1e-4, atol=1e-5
        )


def by_loops(moving: Tensor, fixed: Tensor, radius: int) -> Tensor:
    moving_mind, fixed_mind = mind_ssc(moving, dilation=DILATION), mind_ssc(fixed, dilation=DILATION)
    shape = fixed.shape[2:]
    costs = torch.zeros(len(fixed), cost_channels(radius), *shape)
    for channel, step in enumerate(product(range(-radius, radius + 1), repeat=3)):
        for voxel in product(*map(range, shape)):
            z, y, x = (min(max(i + s, 0), n - 1) for i, s, n in zip(voxel, step, shape, strict=True))
            difference = fixed_mind[(..., *voxel)] - moving_mind[:, :, z, y, x]
            costs[(slice(None), channel, *voxel)] = SCALE * difference.square().mean(dim=1)
    return costs


@pytest.mark.parametrize("radius", [1, 2])
def test_as_by_loops(radius: int) -> None:
    generator = torch.Generator().manual_seed(0)
    moving, fixed = (torch.rand(2, 1, 4, 5, 6, generator=generator) for _ in range(2))
    torch.testing.assert_close(cost_volume(moving, fixed, radius), by_loops(moving, fixed, radius))


def test_the_step_to_where_the_image_went_costs_nothing_in_another_contrast_too() -> None:
    fixed = torch.rand(1, 1, 12, 12, 12, generator=torch.Generator().manual_seed(1))
    # fixed(p) = moving(p + step) with step (z, y, x) = (0, 1, -1), and the contrast is inverted.
    moving = 0.8 - 0.5 * fixed.roll((1, -1), dims=(3, 4))
    costs = cost_volume(moving, fixed, 1)[0, :, 4:-4, 4:-4, 4:-4].mean(dim=(1, 2, 3))
    step = list(product((-1, 0, 1), repeat=3)).index((0, 1, -1))
    assert costs[step] == pytest.approx(0, abs=1e-5)
    assert costs[torch.arange(27) != step].min() > 0.1


def test_it_has_no_gradient_and_computes_in_float32() -> None:
    moving = torch.rand(1, 1, 8, 8, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        costs = cost_volume(moving, torch.rand(1, 1, 8, 8, 8), 1)
    assert not costs.requires_grad
    assert costs.dtype == torch.float32
    assert (cost_channels(0), cost_channels(1), cost_channels(2)) == (0, 27, 125)


GRIDS = {8: (2, 2, 2), 180: (6, 5, 6), 1716: (11, 13, 12)}


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_each_channel_lands_in_its_voxel(factor: int) -> None:
    grid, channels = (2, 3, 4), 2
    d, h, w = grid
    tokens = torch.arange(d * h * w * channels * factor**3, dtype=torch.float32).reshape(1, d * h * w, -1)
    volume = voxel_shuffle(tokens, grid, factor)
    assert volume.shape == (1, channels, d * factor, h * factor, w * factor)
    for token in range(d * h * w):
        z, y, x = token // (h * w), token // w % h, token % w
        for c in range(channels):
            for offset in range(factor**3):
                dz, dy, dx = offset // factor**2, offset // factor % factor, offset % factor
                voxel = volume[0, c, z * factor + dz, y * factor + dy, x * factor + dx]
                assert voxel == tokens[0, token, c * factor**3 + offset]


@pytest.mark.parametrize("tokens", GRIDS)
@pytest.mark.parametrize("stage", [1, 2, 3, 4])
@pytest.mark.parametrize("direct", [False, True])
def test_stage_adapters_match_the_encoder(tokens: int, stage: int, direct: bool) -> None:
    grid, base = GRIDS[tokens], 16
    with torch.device("meta"):
        adapter = StageAdapter(576, base, stage, direct=direct)
        features = adapter(torch.empty(1, tokens, 576), grid)
    assert adapter.linear.out_features == {4: 256, 3: 1024, 2: 4096, 1: 16384}[stage]
    channels = {4: 32, 3: 16, 2: 8, 1: 4}[stage] if direct else base * 2 ** (stage - 1)
    assert features.shape == (1, channels, *(size * 2 ** (5 - stage) for size in grid))
    assert adapter.channels == channels
