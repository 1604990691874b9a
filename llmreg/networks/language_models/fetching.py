"""Fetching layers: read them once, measure the scale at which the original model uses them, and cache them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from llmreg.errors import UserError
from llmreg.networks.config import LLMSettings
from llmreg.networks.language_models import cache
from llmreg.networks.language_models.families import build_config
from llmreg.networks.language_models.layer import FrozenLayer, check_runnable
from llmreg.networks.language_models.loading import build_layers, find_layers
from llmreg.networks.language_models.sources import BUILT_IN, chosen_layers, is_local, open_model, readable

log = logging.getLogger(__name__)

# Enough tokens for a stable median; few enough for seconds on a CPU.
_TOKENS = 256
_SEED = 0


def named_layers(source: str | None, layers: Sequence[str] | None, settings: LLMSettings | None = None) -> LLMSettings:
    """Settings for a language model and layers as a user names them.

    Args:
        source: see :func:`llmreg.networks.language_models.sources.open_model`; that of ``settings`` when None.
        layers: indices as text, or ``middle`` or ``deep`` alone. When None, those of ``settings`` for their own source,
            ``middle`` for another.
        settings: what else is kept; the defaults when None.

    Raises:
        UserError: the layers are neither, or there is no such model or layer.
    """
    settings = settings or LLMSettings()
    source = source or settings.source
    if layers is None and source == settings.source:
        return settings
    layers = layers or ["middle"]
    chosen: tuple[int, ...]
    if tuple(layers) in (("middle",), ("deep",)):
        model = open_model(source)
        chosen = chosen_layers(layers[0], int(build_config(model.config, model.family).num_hidden_layers))
    elif 1 <= len(layers) <= 2 and all(layer.isdecimal() for layer in layers):
        chosen = tuple(map(int, layers))
    else:
        raise UserError(f"'{' '.join(layers)}' names no layers: give one or two numbers from 0, or middle, or deep.")
    return settings.model_copy(update={"source": source, "layers": chosen, "sha256": None})


def fetch(settings: LLMSettings, folder: Path, measure: bool = False) -> LLMSettings:
    """Put the layers that settings name into the cache, unless they are there.

    Args:
        settings: source, layers and, where known, the digest they must have.
        folder: the layer cache.
        measure: measure the scale of what enters the layers, even if the settings do not use it.

    Returns:
        The settings with the layers' digest.

    Raises:
        UserError: the layers cannot be found or run so, are others than the digest says, or the cache cannot be
            written.
    """
    if is_local(settings.source):
        # Whoever uses the plans later may stand in another folder.
        settings = settings.model_copy(update={"source": str(Path(settings.source).expanduser().resolve())})
    record = _cached(settings, folder)
    if record is not None:
        check_runnable(record.config, settings)
    else:
        stored = find_layers(settings, folder)
        check_runnable(stored.config, settings)
        where = cache.write(stored, folder)
        record = cache.read_record(where)
        log.info("Layers %s of %s are in %s", ", ".join(map(str, stored.layers)), settings.source, where)
    settings = settings.model_copy(update={"sha256": record.sha256})
    unknown = None in (record.input_rms or (None,))
    if (measure or settings.calibrate) and unknown and record.weights == "pretrained" and record.revision is None:
        cache.write_scale(record.sha256, _known_input_rms(settings), folder)
    return settings


def _cached(settings: LLMSettings, folder: Path) -> cache.Record | None:
    """What the cache knows of these layers. Raises UserError when their digest is that of others."""
    if settings.sha256 is None:
        # What lies on the hub under a name is fetched once; a folder's or a file's content may change.
        if settings.source in BUILT_IN or is_local(settings.source):
            return None
        found = cache.find_named(settings.source, settings.layers, settings.weights, folder)
        return None if found is None else cache.read_record(found)
    found = cache.find(settings.sha256, folder)
    if found is None:
        return None
    record = cache.read_record(found)
    for key in ("source", "weights"):
        if getattr(record, key) != getattr(settings, key):
            raise UserError(
                f"The plans' network.llm.sha256 {record.sha256[:12]} stands for layers with {key} "
                f"'{getattr(record, key)}', not '{getattr(settings, key)}': set network.llm.sha256 to null."
            )
    return record


def _known_input_rms(settings: LLMSettings) -> tuple[float | None, ...]:
    try:
        return measure_input_rms(settings.source, settings.layers)
    except UserError as error:
        log.warning("The scale at which tokens enter the layers is unknown (%s): 1 is taken.", error)
        return (None,) * len(settings.layers)


def measure_input_rms(source: str, layers: Sequence[int]) -> tuple[float | None, ...]:
    """Root mean square of the hidden states that enter each layer of the original model: the median over tokens.

    The layers before are run one by one on random tokens. The median is taken because a few tokens, the first above
    all, carry activations hundreds of times as large (Sun et al., Massive Activations in Large Language Models, 2024):
    a mean would describe these alone. None where the input is more than the tokens' embedding.
    """
    model = open_model(source)
    if not model.family.rotary:
        return (None,) * len(layers)
    generator = torch.Generator().manual_seed(_SEED)
    ids = torch.randint(0, 1 << 30, (_TOKENS,), generator=generator).tolist()
    as_text = LLMSettings(attention="causal", rotary="1d", calibrate=False, lora=None)
    found = {}
    with readable(source), torch.inference_mode():
        hidden = model.embeddings(ids)[None]
        if model.family.scaled_embeddings:
            hidden = hidden * hidden.shape[-1] ** 0.5
        for index in tqdm(range(max(layers) + 1), desc="Measure scale", unit="layer"):
            found[index] = float(hidden.square().mean(dim=-1).sqrt().median())
            if index < max(layers):
                loaded = build_layers(model.layers([index]), torch.float32)
                hidden = FrozenLayer(loaded, 0, as_text, (1, 1, _TOKENS)).run(hidden)
    return tuple(found[index] for index in layers)
