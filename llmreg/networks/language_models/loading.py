"""Decoder layers as frozen modules, and where a plan finds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from llmreg.errors import UserError
from llmreg.networks.config import LLMSettings
from llmreg.networks.language_models import cache
from llmreg.networks.language_models.families import Family, build_config, family_of
from llmreg.networks.language_models.reading import expected_shapes, undo_rotary_permutation
from llmreg.networks.language_models.sources import open_model, read_layers
from llmreg.networks.language_models.stored import StoredLayers, StoredTensor

_RANDOM_SEED = 0


@dataclass(frozen=True, eq=False)
class LoadedLayers:
    """Frozen decoder layers in the order asked for.

    Attributes:
        family: how transformers runs them.
        config: the language model's configuration.
        layers: one module a layer, in evaluation mode and without gradients.
        indices: their zero-based positions in the language model.
        input_rms: root mean square of the hidden states that enter each layer in the original model; 1 where unknown.
    """

    family: Family
    config: PreTrainedConfig
    layers: list[nn.Module]
    indices: tuple[int, ...]
    input_rms: tuple[float, ...]


def find_layers(settings: LLMSettings, folder: Path) -> StoredLayers:
    """The layers that a plan names: from the cache if it has them, else from their source.

    Args:
        settings: source, layers, and the digest that they must have.
        folder: the layer cache.

    Raises:
        UserError: they are nowhere, or those of the source have another digest.
    """
    sha256 = settings.sha256
    wanted = f"Layers {', '.join(map(str, settings.layers))} of the language model '{settings.source}'"
    if sha256 is not None and (cached := cache.find(sha256, folder)) is not None:
        stored = cache.read(cached)
        if stored.layers != settings.layers:
            raise UserError(
                f"{wanted} are not what the plans' sha256 {sha256[:12]} stands for (layers "
                f"{', '.join(map(str, stored.layers))}): restore the plans, or set network.llm.sha256 to null."
            )
        return stored
    try:
        if settings.weights == "random":
            stored = random_layers(settings.source, open_model(settings.source).config, settings.layers)
        else:
            stored = read_layers(settings.source, settings.layers)
    except UserError as error:
        named = cache.find_named(settings.source, settings.layers, settings.weights, folder) if sha256 is None else None
        if named is not None:
            return cache.read(named)
        if sha256 is None:
            raise
        raise UserError(
            f"{wanted} (sha256 {sha256[:12]}) are not in the layer cache {folder}, and not at their source ({error}). "
            "Copy their folder into the cache from the computer that trained with them, or run llmreg_fetch_llm."
        ) from error
    if sha256 is not None and stored.sha256 != sha256:
        raise UserError(
            f"{wanted} are not those of this plan (sha256 {stored.sha256[:12]}, not {sha256[:12]}): put the same "
            f"weights there, or their layer cache into {folder}."
        )
    return stored


def random_layers(source: str, config: Mapping[str, Any], layers: Sequence[int]) -> StoredLayers:
    """Layers with the random weights that a new model starts from, always the same ones, in bfloat16.

    As in transformers' models: matrices are normal with the configuration's ``initializer_range``, biases zero, the
    scales of norms as their class makes them.
    """
    family = family_of(config, source)
    built = build_config(config, family)
    generator = torch.Generator().manual_seed(_RANDOM_SEED)
    tensors: dict[tuple[int, str], StoredTensor] = {}
    shapes = expected_shapes(config, family, layers, source)
    for index in layers:
        for name, values in family.build_layer(built, index).state_dict().items():
            if values.ndim > 1:
                values = torch.empty(shapes[index, name], dtype=torch.bfloat16)
                values.normal_(0.0, built.initializer_range, generator=generator)
            elif name.endswith(".bias"):
                values = torch.zeros_like(values)
            tensors[index, name] = StoredTensor(values.to(torch.bfloat16))
    return StoredLayers(source, None, config, tuple(layers), "huggingface", tensors, "random")


def build_layers(stored: StoredLayers, dtype: torch.dtype, held: torch.dtype | None = None) -> LoadedLayers:
    """Make modules of stored layers; tensors that have the type already are not copied.

    Args:
        stored: what was read.
        dtype: type that the frozen weights are rounded to.
        held: type that they are held and computed in; ``dtype`` when None.

    Raises:
        UserError: the family is unknown, or tensors are missing.
    """
    family = family_of(stored.config, stored.source)
    config = build_config(stored.config, family)
    modules = []
    for index in stored.layers:
        with torch.device("meta"):
            module = family.build_layer(config, index)
        state = {
            name: _weights(stored, index, name, family, config).to(dtype).to(held or dtype)
            for name in _names(stored, index)
        }
        try:
            module.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise UserError(f"The layers of '{stored.source}' do not fit its configuration: get them again.") from error
        modules.append(module.requires_grad_(False).eval())
    rms = stored.input_rms or (None,) * len(stored.layers)
    known = tuple(1.0 if value is None else value for value in rms)
    return LoadedLayers(family, config, modules, stored.layers, known)


def _names(stored: StoredLayers, index: int) -> Iterable[str]:
    return [name for layer, name in stored.tensors if layer == index]


def _weights(stored: StoredLayers, index: int, name: str, family: Family, config: PreTrainedConfig) -> Tensor:
    values = stored.tensors[index, name].numbers()
    if stored.rows == "gguf" and family.name == "llama":
        if "q_proj" in name:
            return undo_rotary_permutation(values, int(config.num_attention_heads))
        if "k_proj" in name:
            return undo_rotary_permutation(values, int(config.num_key_value_heads))
    return values
