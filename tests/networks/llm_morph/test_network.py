"""The whole network: shapes, sizes, composition, and the state a checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from llmreg.errors import BadLanguageModel, UnknownName
from llmreg.networks.factory import build_network, load_trainable_state, trainable_state
from llmreg.networks.language_models.families import family_of
from llmreg.networks.language_models.llm_settings import LLMSettings
from llmreg.networks.language_models.loading import LoadedLayers
from llmreg.networks.llm_morph.encoder import Encoder
from llmreg.networks.llm_morph.network import LLMMorph
from llmreg.networks.llm_morph.plugin import LLMMorphSettings

Make = Callable[..., LLMMorphSettings]
SHAPE = (32, 16, 48)


def _images(batch: int = 1, shape: tuple[int, ...] = SHAPE) -> tuple[Tensor, Tensor]:
    return torch.rand(batch, 1, *shape), torch.rand(batch, 1, *shape)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reshape": "direct"},
        {"accumulate": "sum", "normalization": "none"},
        {"position_embedding": False, "final_norm": False, "llm": {"attention": "causal", "lora": None}},
        {"llm": {"rotary": "1d", "dtype": "float32"}},
        {"cost_volume": 1},
    ],
    ids=str,
)
def test_every_variant_gives_a_small_field_and_learns(tiny_settings: Make, changes: dict, batch: int) -> None:
    network = build_network(tiny_settings(**changes), SHAPE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        flow = network(*_images(batch))
    assert flow.shape == (batch, 3, *SHAPE)
    assert flow.dtype == torch.float32
    assert 0 < flow.abs().max() < 0.1
    (flow - 1).square().mean().backward()
    without = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not without


def test_each_image_has_its_own_encoder_and_moving_features_come_first(tiny_settings: Make) -> None:
    network = build_network(tiny_settings(position_embedding=False), SHAPE)
    inputs, features, tokens, decoded = {}, {}, [], []
    for name in ("moving", "fixed"):
        encoder = getattr(network, f"{name}_encoder")
        encoder.register_forward_pre_hook(lambda module, images, name=name: inputs.update({name: images[0]}))
        encoder.register_forward_hook(lambda module, images, output, name=name: features.update({name: output[4]}))
    network.blocks[0].register_forward_pre_hook(lambda module, values: tokens.append(values[0]))
    network.decoder.register_forward_pre_hook(lambda module, values: decoded.append(values[1:]))
    moving, fixed = _images()
    with torch.no_grad():
        network(moving, fixed)
    ((moving_features, fixed_features, images),) = decoded
    torch.testing.assert_close((moving_features[4], fixed_features[4]), (features["moving"], features["fixed"]))
    torch.testing.assert_close(images, (moving, fixed))
    torch.testing.assert_close(inputs, {"moving": moving, "fixed": fixed})
    channels_of_tokens = torch.cat([features["moving"], features["fixed"]], dim=1)
    torch.testing.assert_close(tokens[0], channels_of_tokens.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("shape", [(32, 16, 40), (32, 16), (0, 16, 16)])
def test_shapes_that_do_not_halve_four_times_are_refused(tiny_settings: Make, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="is not three"):
        build_network(tiny_settings(), shape)


def test_images_of_another_shape_are_refused(tiny_settings: Make) -> None:
    with pytest.raises(ValueError, match="are needed"):
        build_network(tiny_settings(), SHAPE)(*_images(shape=(32, 32, 32)))


def test_encoder_levels() -> None:
    levels = Encoder(16, "instance")(torch.rand(1, 1, 32, 32, 16))
    assert [tuple(level.shape[1:]) for level in levels] == [
        (16, 32, 32, 16),
        (32, 16, 16, 8),
        (64, 8, 8, 4),
        (128, 4, 4, 2),
        (256, 2, 2, 1),
    ]


def _constant_fields(network: LLMMorph, displacement: dict[str, float]) -> None:
    """Make each head predict a constant displacement along x."""
    for stage, head in network.decoder.heads.items():
        nn.init.zeros_(head.weight)
        head.bias.data = torch.tensor([displacement[stage], 0.0, 0.0])


@pytest.mark.parametrize(("accumulate", "total"), [("compose", 2 * (2 * 0.5 + 0.25) + 0.125), ("sum", 0.875)])
def test_constant_fields_add_up_in_the_finest_voxels(tiny_settings: Make, accumulate: str, total: float) -> None:
    network = build_network(tiny_settings(accumulate=accumulate), SHAPE).eval()
    _constant_fields(network, {"3": 0.5, "2": 0.25, "1": 0.125})
    with torch.no_grad():
        flow = network(*_images())
    torch.testing.assert_close(flow[:, 0], torch.full_like(flow[:, 0], total))
    assert flow[:, 1:].abs().max() == 0


@pytest.mark.parametrize(("blocks", "cost_volume"), [("adapters", 1), ("none", 0)])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_computing_the_finest_level_twice_changes_memory_alone(
    tiny_settings: Make, precision: torch.dtype, blocks: str, cost_volume: int
) -> None:
    torch.manual_seed(0)
    network = build_network(tiny_settings(blocks=blocks, cost_volume=cost_volume), SHAPE)
    images = _images()

    def differentiate(recompute: bool) -> tuple[int, dict[str, Tensor]]:
        """Count the bytes that are kept for the backward pass, without weights, and compute its gradients."""
        network.recompute = recompute
        network.zero_grad()
        saved_sizes: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            saved_sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16),
        ):
            loss = (network(*images) - 1).square().mean()
        loss.backward()
        activations = sum(size for address, size in saved_sizes.items() if address not in weights)
        return activations, {name: p.grad for name, p in network.named_parameters() if p.grad is not None}

    weights = {p.data_ptr() for p in network.parameters()}
    (plain_bytes, plain_gradients), (recomputed_bytes, recomputed_gradients) = differentiate(False), differentiate(True)
    assert recomputed_bytes < 0.75 * plain_bytes
    assert plain_gradients.keys() == recomputed_gradients.keys()
    tolerance = {"rtol": 0.05, "atol": 5e-4} if precision == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-6}
    for name, gradient in plain_gradients.items():
        torch.testing.assert_close(recomputed_gradients[name], gradient, **tolerance)


@pytest.mark.parametrize("hardware", [True, False])
def test_bfloat16_weights_are_held_in_what_the_hardware_computes_in(
    tiny_settings: Make, monkeypatch: pytest.MonkeyPatch, hardware: bool
) -> None:
    monkeypatch.setattr("llmreg.networks.language_models.loading.has_bfloat16", lambda device: hardware)
    network = build_network(tiny_settings(), SHAPE)
    frozen = [p for p in network.parameters() if not p.requires_grad]
    assert {p.dtype for p in frozen} == {torch.bfloat16 if hardware else torch.float32}
    # Weights that bfloat16 cannot hold are rounded on both kinds of hardware.
    assert all(torch.equal(p, p.bfloat16().to(p.dtype)) for p in frozen)
    assert build_network(tiny_settings(llm={"dtype": "float32"}), SHAPE).llm_sha256 == network.llm_sha256


def _paper(shape: tuple[int, int, int]) -> LLMMorph:
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8
    )
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        layers = [LlamaDecoderLayer(config, 0).to(torch.bfloat16).requires_grad_(False) for _ in range(2)]
        family = family_of(config.to_dict(), "LLaMA 3")
        return LLMMorph(LLMMorphSettings(), shape, LoadedLayers(family, config, layers, (15, 16)))


def test_sizes_of_the_paper() -> None:
    network = _paper((192, 208, 176))
    assert network.position_embedding is not None
    assert network.position_embedding.shape == (1, 1716, 512)
    trainable = sum(p.numel() for n, p in network.named_parameters() if p.requires_grad and n != "position_embedding")
    frozen = sum(p.numel() for p in network.parameters() if not p.requires_grad)
    assert trainable == pytest.approx(112.3e6, rel=0.005)
    assert frozen == 2 * 218_112_000
    assert _paper((96, 80, 96)).token_grid == (6, 5, 6)


def test_state_holds_what_learns_and_comes_back(tiny_settings: Make) -> None:
    torch.manual_seed(1)
    first, second = (build_network(tiny_settings(), SHAPE).eval() for _ in range(2))
    state = {name: value.clone() for name, value in trainable_state(first).items()}
    scales = {"blocks.0.layer.scale", "blocks.1.layer.scale"}
    assert set(state) == scales | {name for name, p in first.named_parameters() if p.requires_grad}
    assert not any("base_layer" in name or ".mlp." in name for name in state)
    assert any("lora_A" in name for name in state)
    images = _images()
    with torch.no_grad():
        assert not torch.equal(first(*images), second(*images))
        load_trainable_state(second, state)
        assert torch.equal(first(*images), second(*images))


def test_a_state_that_does_not_fit_is_a_sentence_and_changes_nothing(tiny_settings: Make) -> None:
    network = build_network(tiny_settings(), SHAPE)
    before = {name: value.clone() for name, value in trainable_state(network).items()}
    name = next(iter(before))
    zeros = {key: torch.zeros_like(value) for key, value in before.items()}
    for wrong, match in (
        ({key: value for key, value in zeros.items() if key != name}, "lacks"),
        (zeros | {"other": torch.zeros(1)}, "unknown tensor other"),
        (zeros | {name: torch.zeros(1)}, r"shape \(1,\)"),
    ):
        with pytest.raises(ValueError, match=match):
            load_trainable_state(network, wrong)
    assert all(torch.equal(value, before[key]) for key, value in trainable_state(network).items())


def test_what_adapts_the_layers_is_told_by_its_name(tiny_settings: Make) -> None:
    network = build_network(tiny_settings(), SHAPE)
    names = {name for name in trainable_state(network) if network.adaptation in name}
    assert names
    assert names.isdisjoint(trainable_state(build_network(tiny_settings(llm={"lora": None}), SHAPE)))


def test_another_language_model_than_planned_is_refused(tiny_settings: Make) -> None:
    digest = build_network(tiny_settings(), SHAPE).llm_sha256
    build_network(tiny_settings(llm={"sha256": digest}), SHAPE)
    with pytest.raises(BadLanguageModel, match="0" * 12):
        build_network(tiny_settings(llm={"sha256": "0" * 64}), SHAPE)
    with pytest.raises(UnknownName, match="LoRA target 'query'"):
        build_network(tiny_settings(llm={"lora": {"targets": ("query",)}}), SHAPE)


@pytest.mark.parametrize(
    "change",
    [{"widht": 16}, {"name": "other"}, {"llm": {"layers": (-1, 2)}}, {"width": 6, "reshape": "direct"}, {"width": 0}],
    ids=str,
)
def test_settings_refuse_what_they_do_not_know(change: dict) -> None:
    with pytest.raises(ValidationError):
        LLMMorphSettings.model_validate(change)


def test_settings_survive_json_and_are_frozen() -> None:
    settings = LLMMorphSettings(llm=LLMSettings(lora=None))
    assert LLMMorphSettings.model_validate_json(settings.model_dump_json()) == settings
    with pytest.raises(ValidationError):
        settings.width = 8  # type: ignore[misc]
