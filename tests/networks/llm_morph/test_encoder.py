"""The encoders, and the kinds of blocks behind them, as whole networks and one by one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmreg.networks.factory import build_network
from llmreg.networks.language_models.layer import FrozenLayer
from llmreg.networks.language_models.loading import build_layers
from llmreg.networks.language_models.reading import read_layers
from llmreg.networks.llm_morph.encoder import Encoder, EncodingBlock, TokenAdapter, encoding_blocks
from llmreg.networks.llm_morph.plugin import LLMMorphSettings

Make = Callable[..., LLMMorphSettings]
SHAPE = (32, 16, 16)


def _images() -> tuple[Tensor, Tensor]:
    return torch.rand(1, 1, *SHAPE), torch.rand(1, 1, *SHAPE)


@pytest.mark.parametrize(
    ("blocks", "changes"),
    [(kind, {}) for kind in ("llm", "vit", "adapters", "none")]
    + [("none", {"reshape": "direct", "accumulate": "sum"})],
    ids=str,
)
def test_every_kind_gives_a_small_field_and_learns(tiny_settings: Make, blocks: str, changes: dict) -> None:
    network = build_network(tiny_settings(blocks=blocks, **changes), SHAPE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        flow = network(*_images())
    assert flow.shape == (1, 3, *SHAPE)
    assert flow.dtype == torch.float32
    assert 0 < flow.abs().max() < 0.1
    (flow - 1).square().mean().backward()
    assert not [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not [name for name, p in network.named_parameters() if not p.requires_grad and p.grad is not None]
    assert any(not p.requires_grad for p in network.parameters()) == (blocks == "llm")


@pytest.mark.parametrize("blocks", ["llm", "vit", "adapters"])
@pytest.mark.parametrize("layers", [(1,), (1, 2)])
def test_there_is_one_block_for_each_layer(tiny_settings: Make, blocks: str, layers: tuple[int, ...]) -> None:
    network = build_network(tiny_settings(blocks=blocks, llm={"layers": layers}), SHAPE)
    assert len(network.blocks) == len(layers)
    # Both images have 64 channels at the deepest level of width 4; the language model has 64 of its own.
    assert [block.adapter.widen.in_features for block in network.blocks] == [128, 64][: len(layers)]
    assert network(*_images()).shape == (1, 3, *SHAPE)


def test_without_blocks_the_images_meet_in_the_decoder_alone(tiny_settings: Make) -> None:
    network = build_network(tiny_settings(blocks="none"), SHAPE)
    assert not len(network.blocks)
    assert not len(network.adapters)
    assert network.position_embedding is None
    assert network.llm_sha256 == ""
    complete_network = build_network(tiny_settings(blocks="adapters"), SHAPE)
    assert sum(p.numel() for p in network.parameters()) < sum(p.numel() for p in complete_network.parameters())


@pytest.mark.parametrize("blocks", ["vit", "adapters", "none"])
def test_kinds_without_a_language_model_need_none(tiny_settings: Make, blocks: str) -> None:
    network = build_network(tiny_settings(blocks=blocks, llm={"source": "nowhere"}), SHAPE)
    assert not [name for name, _ in network.named_parameters() if "lora" in name]


def _blocks(settings: LLMMorphSettings, folder: Path) -> nn.ModuleList:
    loaded = None
    if settings.blocks == "llm":
        loaded = build_layers(read_layers(str(folder), settings.llm.layers), torch.float32)
    return encoding_blocks(settings, 128, 32, (1, 2, 3), loaded)


@pytest.mark.parametrize("blocks", ["llm", "vit", "adapters"])
def test_a_block_is_adapter_layer_and_norm(tiny_settings: Make, tiny_llama: Path, blocks: str) -> None:
    settings = tiny_settings(blocks=blocks, llm={"dtype": "float32"})
    first, second = _blocks(settings, tiny_llama)
    kind = {"llm": FrozenLayer, "adapters": nn.Identity}.get(blocks)
    if kind is not None:
        assert type(first.layer) is type(second.layer) is kind
    tokens = torch.randn(2, 6, 128)
    with torch.no_grad():
        inside = first.layer(first.adapter(tokens))
        scaled = inside / (inside.square().mean(-1, keepdim=True) + first.norm.eps).sqrt() * first.norm.weight
        torch.testing.assert_close(first(tokens), scaled, rtol=1e-4, atol=1e-5)
        assert second(first(tokens)).shape == (2, 6, 64)


@pytest.mark.parametrize(("blocks", "mixes"), [("llm", True), ("vit", True), ("adapters", False)])
def test_tokens_exchange_information_in_the_layer_alone(
    tiny_settings: Make, tiny_llama: Path, blocks: str, mixes: bool
) -> None:
    layer = _blocks(tiny_settings(blocks=blocks, llm={"dtype": "float32"}), tiny_llama)[0].layer
    tokens = torch.randn(1, 6, 64)
    changed = torch.cat([tokens[:, :5], torch.randn(1, 1, 64)], dim=1)
    with torch.no_grad():
        difference = (layer(tokens) - layer(changed))[:, :5].abs().max().item()
    assert (difference > 1e-5) == mixes


def test_a_block_without_norm_ends_with_its_layer(tiny_settings: Make, tiny_llama: Path) -> None:
    block = _blocks(tiny_settings(blocks="adapters", final_norm=False), tiny_llama)[0]
    tokens = torch.randn(1, 6, 128)
    assert torch.equal(block(tokens), block.adapter(tokens))


def test_the_norms_eps_is_the_language_models(tiny_settings: Make, tiny_llama: Path) -> None:
    stored = read_layers(str(tiny_llama), (1, 2))
    loaded = build_layers(stored, torch.float32)
    loaded.config.rms_norm_eps = 0.125
    blocks = encoding_blocks(tiny_settings(), 128, 32, (1, 2, 3), loaded)
    assert [block.norm.eps for block in blocks] == [0.125, 0.125]


def test_an_encoding_block_gives_float32() -> None:
    block = EncodingBlock(8, 16, 12, nn.Linear(12, 12).bfloat16(), final_norm=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert block(torch.randn(1, 5, 8)).dtype == torch.float32
    assert isinstance(block.adapter, TokenAdapter)


def test_random_weights_are_others_and_always_the_same(tiny_settings: Make) -> None:
    def frozen(weights: str) -> dict[str, Tensor]:
        network = build_network(tiny_settings(llm={"weights": weights, "dtype": "float32"}), SHAPE)
        return {name: p.detach() for name, p in network.named_parameters() if not p.requires_grad}

    torch.manual_seed(1)
    pretrained, random = frozen("pretrained"), frozen("random")
    torch.manual_seed(2)
    again = frozen("random")
    assert pretrained.keys() == random.keys()
    assert all(torch.equal(random[name], again[name]) for name in random)
    assert not any(torch.equal(random[name], pretrained[name]) for name in random)


def test_adapter_0_normalises_over_tokens() -> None:
    adapter = TokenAdapter(6, 10, 7)
    tokens = torch.randn(2, 9, 6)
    hidden = F.leaky_relu(F.instance_norm(adapter.widen(tokens).transpose(1, 2)), 0.2).transpose(1, 2)
    torch.testing.assert_close(adapter(tokens), adapter.project(hidden), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("with_tokens", [True, False])
def test_each_level_of_the_encoder_halves_the_image_and_doubles_the_channels(with_tokens: bool) -> None:
    encoder = Encoder(2, "instance", with_tokens=with_tokens)
    image = torch.rand(1, 1, 32, 16, 48)
    pyramid = encoder(image)
    expected = [(1, 2 << level, 32 >> level, 16 >> level, 48 >> level) for level in range(5 if with_tokens else 4)]
    assert [tuple(features.shape) for features in pyramid] == expected
    # Gradient checkpointing of the finest level changes no number.
    for features, checkpointed in zip(pyramid, encoder(image, recompute=True), strict=True):
        assert torch.equal(features, checkpointed)


def test_a_level_sees_the_level_above_alone() -> None:
    encoder = Encoder(2, "none")
    level_inputs: list[Tensor] = []
    for level in encoder.levels:
        level.register_forward_pre_hook(lambda _, inputs: level_inputs.append(inputs[0]))
    image = torch.rand(1, 1, 16, 16, 16)
    pyramid = encoder(image)
    assert all(map(torch.equal, level_inputs, [image, *pyramid[:-1]]))
