"""From settings to frozen decoder layers: choosing them, fetching them into the cache, and building their modules."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from llmreg.devices import has_bfloat16
from llmreg.errors import BadArgument, BadLanguageModel, BadPlans, MissingLayers, UserError
from llmreg.networks.language_models import cache
from llmreg.networks.language_models.cache import StoredLayers, StoredTensor
from llmreg.networks.language_models.families import Family, build_config, check_runnable, family_of
from llmreg.networks.language_models.llm_settings import LLMSettings
from llmreg.networks.language_models.reading import (
    BUILT_IN,
    initial_tensors,
    is_local,
    open_model,
    read_layers,
    undo_rotary_permutation,
)

log = logging.getLogger(__name__)


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


def select_layers(source: str | None, layers: Sequence[str] | None, settings: LLMSettings | None = None) -> LLMSettings:
    """Settings for a language model and layers as a user names them.

    Args:
        source: see :func:`llmreg.networks.language_models.reading.open_model`; that of ``settings`` when None.
        layers: indices as text, or ``middle`` or ``deep`` alone. When None, those of ``settings`` for their own source,
            ``middle`` for another.
        settings: what else is kept; the defaults when None.

    Raises:
        BadArgument: the layers are neither.
        BadLanguageModel: there is no such model.
    """
    settings = settings or LLMSettings()
    source = source or settings.source
    if layers is None and source == settings.source:
        return settings
    layers = layers or ["middle"]
    if 1 <= len(layers) <= 2 and all(layer.isdecimal() for layer in layers):
        indices = tuple(map(int, layers))
    elif tuple(layers) in (("middle",), ("deep",)):
        model = open_model(source)
        count = int(build_config(model.config, model.family, model.where).num_hidden_layers)
        # 15 and 16, or 30 and 31, of 32.
        indices = (count // 2 - 1, count // 2) if layers[0] == "middle" else (count - 2, count - 1)
    else:
        raise BadArgument(
            "layers", f"'{' '.join(layers)}' names no layers: give one or two numbers from 0, or middle, or deep."
        )
    return settings.model_copy(update={"source": source, "layers": indices, "sha256": None})


def fetch(settings: LLMSettings, folder: Path) -> LLMSettings:
    """Put the layers that settings name into the cache, unless they are there; nothing else of the model is read.

    Args:
        settings: source, layers and, where known, the digest they must have.
        folder: the layer cache.

    Returns:
        The settings with the layers' digest.

    Raises:
        UserError: the layers cannot be found or run so, are others than the digest says, or the cache cannot be
            written.
    """
    if is_local(settings.source):
        # Whoever uses the plans later may work in another folder.
        settings = settings.model_copy(update={"source": str(Path(settings.source).expanduser().resolve())})
    record_or_layers = _find_record(settings, folder) or find_layers(settings, folder)
    check_runnable(record_or_layers.config, settings)
    if isinstance(record_or_layers, StoredLayers):
        cached = cache.write(record_or_layers, folder)
        log.info("Layers %s of %s are in %s", ", ".join(map(str, settings.layers)), settings.source, cached)
    return settings.model_copy(update={"sha256": record_or_layers.sha256})


def _find_record(settings: LLMSettings, folder: Path) -> cache.Record | None:
    # The cache's record of these layers; an error when their digest is that of others.
    sha256, source = settings.sha256, settings.source
    if sha256 is not None:
        cached = cache.find(sha256, folder)
    elif source in BUILT_IN or is_local(source):
        # A model on the hub is fetched once under a name; the content of a folder or a file may change.
        return None
    else:
        cached = cache.find_named(source, settings.layers, settings.weights, folder)
    if cached is None:
        return None
    record = cache.read_layers_record(cached)
    for key in ("source", "weights"):
        if getattr(record, key) != getattr(settings, key):
            raise BadPlans(
                "The plans",
                "network.llm.sha256",
                f"it stands for layers with {key} '{getattr(record, key)}', not '{getattr(settings, key)}'",
                "set it to null",
            )
    return record


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
    loaded = build_layers(stored, getattr(torch, settings.dtype), torch.float32 if emulated else None)
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
            raise BadPlans(
                "The plans",
                "network.llm.sha256",
                f"it stands for layers {', '.join(map(str, stored.layers))}, not for layers "
                f"{', '.join(map(str, settings.layers))} of the language model {settings.source}",
                "restore the plans, or set it to null",
            )
        return stored
    try:
        stored = (
            random_layers(settings.source, open_model(settings.source).config, settings.layers)
            if settings.weights == "random"
            else read_layers(settings.source, settings.layers)
        )
    except UserError as error:
        if sha256 is None:
            named = cache.find_named(settings.source, settings.layers, settings.weights, folder)
            if named is not None:
                return cache.read(named)
            raise
        raise MissingLayers(settings.source, settings.layers, sha256, folder, str(error)) from error
    if sha256 is not None and stored.sha256 != sha256:
        raise BadLanguageModel(
            settings.source,
            f"has other layers than the plans name (sha256 {stored.sha256[:12]}, not {sha256[:12]})",
            f"put the same weights there, or their layer cache into {folder}",
        )
    return stored


def random_layers(source: str, config: Mapping[str, Any], layers: Sequence[int]) -> StoredLayers:
    """Layers with the random weights that a new model starts from, always the same ones, in bfloat16.

    As in transformers' models, matrices are normal with the configuration's ``initializer_range``, biases are zero and
    the scales of norms are as their class makes them.
    """
    family = family_of(config, source)
    spread = build_config(config, family, source).initializer_range
    generator = torch.Generator().manual_seed(0)
    tensors: dict[tuple[int, str], StoredTensor] = {}
    for index, name, values in initial_tensors(config, family, layers, source, "cpu"):
        # Numbers are drawn in bfloat16, not rounded to it.
        values = values.to(torch.bfloat16)
        if values.ndim > 1:
            values.normal_(0.0, spread, generator=generator)
        elif name.endswith(".bias"):
            values.zero_()
        tensors[index, name] = StoredTensor(values)
    return StoredLayers(source, None, config, tuple(layers), "huggingface", tensors, "random")


def build_layers(stored: StoredLayers, dtype: torch.dtype, compute_dtype: torch.dtype | None = None) -> LoadedLayers:
    """Build modules from stored layers; tensors that have the type already are not copied.

    Args:
        stored: what was read.
        dtype: type that the frozen weights are rounded to.
        compute_dtype: type that they are held and computed in; ``dtype`` when None.

    Raises:
        BadLanguageModel: the family is unknown, or tensors are missing.
    """
    family = family_of(stored.config, stored.source)
    config = build_config(stored.config, family, stored.source)
    modules = []
    for index in stored.layers:
        module = family.build_layer(config, index)
        state = {
            name: _read_weights(stored, index, name, family, config).to(dtype).to(compute_dtype or dtype)
            for layer, name in stored.tensors
            if layer == index
        }
        try:
            module.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise BadLanguageModel(
                stored.source, "has layers that do not fit its configuration", "get them again"
            ) from error
        modules.append(module.requires_grad_(requires_grad=False).eval())
    return LoadedLayers(family, config, modules, stored.layers)


def _read_weights(stored: StoredLayers, index: int, name: str, family: Family, config: PreTrainedConfig) -> Tensor:
    values = stored.tensors[index, name].numbers()
    if stored.rows == "gguf" and family.name == "llama":
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        return values if heads is None else undo_rotary_permutation(values, int(heads))
    return values
