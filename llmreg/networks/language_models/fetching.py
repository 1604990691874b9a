"""Fetching layers: read them once and cache them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from llmreg.errors import UserError
from llmreg.networks.language_models import cache
from llmreg.networks.language_models.families import build_config
from llmreg.networks.language_models.layer import check_runnable
from llmreg.networks.language_models.loading import find_layers
from llmreg.networks.language_models.settings import LLMSettings
from llmreg.networks.language_models.sources import BUILT_IN, choose_layers, is_local, open_model

log = logging.getLogger(__name__)


def select_layers(source: str | None, layers: Sequence[str] | None, settings: LLMSettings | None = None) -> LLMSettings:
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
    indices: tuple[int, ...]
    if tuple(layers) in (("middle",), ("deep",)):
        model = open_model(source)
        indices = choose_layers(layers[0], int(build_config(model.config, model.family).num_hidden_layers))
    elif 1 <= len(layers) <= 2 and all(layer.isdecimal() for layer in layers):
        indices = tuple(map(int, layers))
    else:
        raise UserError(f"'{' '.join(layers)}' names no layers: give one or two numbers from 0, or middle, or deep.")
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
    record = _find_record(settings, folder)
    if record is not None:
        check_runnable(record.config, settings)
    else:
        stored = find_layers(settings, folder)
        check_runnable(stored.config, settings)
        cached = cache.write(stored, folder)
        record = cache.read_record(cached)
        log.info("Layers %s of %s are in %s", ", ".join(map(str, stored.layers)), settings.source, cached)
    return settings.model_copy(update={"sha256": record.sha256})


def _find_record(settings: LLMSettings, folder: Path) -> cache.Record | None:
    """The cache's record of these layers. Raises UserError when their digest is that of others."""
    if settings.sha256 is None:
        # A model on the hub is fetched once under a name; the content of a folder or a file may change.
        if settings.source in BUILT_IN or is_local(settings.source):
            return None
        named = cache.find_named(settings.source, settings.layers, settings.weights, folder)
        return None if named is None else cache.read_record(named)
    cached = cache.find(settings.sha256, folder)
    if cached is None:
        return None
    record = cache.read_record(cached)
    for key in ("source", "weights"):
        if getattr(record, key) != getattr(settings, key):
            raise UserError(
                f"The plans' network.llm.sha256 {record.sha256[:12]} stands for layers with {key} "
                f"'{getattr(record, key)}', not '{getattr(settings, key)}': set network.llm.sha256 to null."
            )
    return record
