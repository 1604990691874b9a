"""Decoder layers as frozen modules, and where settings find them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from llmreg.devices import has_bfloat16
from llmreg.errors import UserError
from llmreg.networks.language_models import cache
from llmreg.networks.language_models.families import Family, build_config, family_of
from llmreg.networks.language_models.layer_errors import MissingLayers, OtherLayers
from llmreg.networks.language_models.reading import expected_shapes, undo_rotary_permutation
from llmreg.networks.language_models.settings import LLMSettings
from llmreg.networks.language_models.sources import open_model, read_layers
from llmreg.networks.language_models.stored import StoredLayers, StoredTensor

_RANDOM_SEED = 0


@dataclass(frozen=True, eq=False)
class LoadedLayers:
    """Frozen decoder layers, in the order of the blocks.

    Attributes:
        family: how transformers runs them.
        config: the language model's configuration.
        layers: one module a layer, in evaluation mode and without gradients.
        indices: their zero-based positions in the language model.
        sha256: digest of the layers' stored weights, which checkpoints hold.
    """

    family: Family
    config: PreTrainedConfig
    layers: list[nn.Module]
    indices: tuple[int, ...]
    sha256: str = ""


_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def load_layers(settings: LLMSettings, folder: Path, device: torch.device) -> LoadedLayers:
    """The frozen layers that settings name, for a device.

    Args:
        settings: source, layers, type, and the digest that they must have.
        folder: the layer cache.
        device: where they will compute.

    Raises:
        UserError: they are nowhere, or those of the source have another digest.
    """
    stored = find_layers(settings, folder)
    # Without hardware for bfloat16, the rounded numbers are held in the type in which they are computed with.
    emulated = settings.dtype == "bfloat16" and not has_bfloat16(device)
    loaded = build_layers(stored, _DTYPES[settings.dtype], torch.float32 if emulated else None)
    # The digest of the settings, where they have one, was compared already; hashing takes long.
    return replace(loaded, sha256=settings.sha256 or stored.sha256)


def find_layers(settings: LLMSettings, folder: Path) -> StoredLayers:
    """The layers that settings name: from the cache if it has them, else from their source.

    Args:
        settings: source, layers, and the digest that they must have.
        folder: the layer cache.

    Raises:
        UserError: they are nowhere, or those of the source have another digest.
    """
    sha256 = settings.sha256
    if sha256 is not None and (cached := cache.find(sha256, folder)) is not None:
        stored = cache.read(cached)
        if stored.layers != settings.layers:
            raise UserError(
                f"The plans' sha256 {sha256[:12]} stands for layers {', '.join(map(str, stored.layers))}, not for "
                f"layers {', '.join(map(str, settings.layers))} of the language model '{settings.source}': restore "
                "the plans, or set network.llm.sha256 to null."
            )
        return stored
    try:
        if settings.weights == "random":
            stored = random_layers(settings.source, open_model(settings.source).config, settings.layers)
        else:
            stored = read_layers(settings.source, settings.layers)
    except UserError as error:
        if sha256 is None:
            named = cache.find_named(settings.source, settings.layers, settings.weights, folder)
            if named is not None:
                return cache.read(named)
            raise
        raise MissingLayers(settings.source, settings.layers, sha256, folder, str(error)) from error
    if sha256 is not None and stored.sha256 != sha256:
        raise OtherLayers(settings.source, settings.layers, stored.sha256, sha256, folder)
    return stored


def random_layers(source: str, config: Mapping[str, Any], layers: Sequence[int]) -> StoredLayers:
    """Layers with the random weights that a new model starts from, always the same ones, in bfloat16.

    As in transformers' models, matrices are normal with the configuration's ``initializer_range``, biases are zero and
    the scales of norms are as their class makes them.
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
    """Build modules from stored layers; tensors that have the type already are not copied.

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
            name: _read_weights(stored, index, name, family, config).to(dtype).to(held or dtype)
            for layer, name in stored.tensors
            if layer == index
        }
        try:
            module.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise UserError(f"The layers of '{stored.source}' do not fit its configuration: get them again.") from error
        modules.append(module.requires_grad_(requires_grad=False).eval())
    return LoadedLayers(family, config, modules, stored.layers)


def _read_weights(stored: StoredLayers, index: int, name: str, family: Family, config: PreTrainedConfig) -> Tensor:
    values = stored.tensors[index, name].numbers()
    if stored.rows == "gguf" and family.name == "llama":
        if "q_proj" in name:
            return undo_rotary_permutation(values, int(config.num_attention_heads))
        if "k_proj" in name:
            return undo_rotary_permutation(values, int(config.num_key_value_heads))
    return values
