"""What a training step of LLM-Morph costs, before anything is built.

Constants are fitted to ``benchmarks/training_memory.py``, which measured 14 sizes of SmolLM2-135M's network in float32
and bfloat16; the estimate of memory is within 15 % of each. The number of trained parameters is compared with networks
of all kinds of blocks in the tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from llmreg.networks.language_models.settings import LLMSettings
from llmreg.networks.llm_morph.settings import LLMMorphSettings, cost_channels
from llmreg.networks.registry import StepCost, StepSize

STRIDE = 16
# Memory (GiB) of transformers and peft.
LIBRARIES_GB = 0.33
# Memory (GiB) of activations for a million network voxels: of images and fields, and of features at width 16.
FIELDS_GB, FEATURES_GB = 0.5, 1.3
# The share of both that is left in bfloat16, and when the finest level is recomputed.
BFLOAT16_SHARE, RECOMPUTED_SHARE = 0.87, 0.7
# Memory (GiB) of one channel of a cost volume for a million network voxels.
COSTS_GB = 0.0037
# Seconds of one CPU core for a million network voxels at width 16, forward and backward.
FLOAT32_SECONDS, BFLOAT16_SECONDS = 35.0, 9.2
# How many times that time is needed when the finest level is recomputed, and with cost volumes.
RECOMPUTED_TIME, COSTS_TIME = 1.15, 1.2


@dataclass(frozen=True)
class LLMSize:
    """A language model's hidden width, and the parameters of one of its layers."""

    hidden: int
    layer_parameters: int


# SmolLM2-135M, the built-in one.
BUILT_IN_SIZE = LLMSize(576, 3_540_096)


@lru_cache
def llm_size(settings: LLMSettings) -> LLMSize:
    """The size of the layers that settings name; those of a model that is not built in are looked up.

    Raises:
        UserError: they are nowhere to be found.
    """
    if settings.source == LLMSettings().source:
        return BUILT_IN_SIZE
    # Imported here, since these import transformers, which takes seconds.
    from llmreg.networks.language_models.families import build_config, family_of
    from llmreg.networks.language_models.loading import find_layers
    from llmreg.paths import llm_cache_folder

    stored = find_layers(settings, llm_cache_folder())
    config = build_config(stored.config, family_of(stored.config, stored.source))
    hidden = int(config.hidden_size)
    inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    heads = int(config.num_attention_heads)
    keys = int(getattr(config, "num_key_value_heads", None) or heads)
    return LLMSize(hidden, int(hidden * (2 * hidden * (1 + keys / heads) + 3 * inner)))


def trained_parameters(settings: LLMMorphSettings, hidden: int, tokens: int) -> float:
    """Number of trained parameters, to some percent.

    Args:
        settings: the network's settings.
        hidden: channels of the tokens.
        tokens: how many there are; each has a position embedding.
    """
    width, blocks = settings.width, len(settings.llm.layers)
    # Of both encoders' first four levels and the decoder.
    convolutions = 19_500 * width**2
    if settings.blocks == "none":
        return convolutions
    # The encoders' last level, and the decoder's convolutions over what the adapters give.
    convolutions += 10_500 * width**2
    stage_adapters = 1360 * width * hidden
    token_adapters = 2048 * width**2 + (2 * blocks - 1) * 64 * width * hidden
    positions = 32 * width * tokens if settings.position_embedding else 0
    layers = 0.0
    if settings.blocks == "vit":
        layers = blocks * 12 * hidden**2
    elif settings.blocks == "llm" and settings.llm.lora is not None:
        layers = blocks * 4.7 * settings.llm.lora.r * hidden
    return convolutions + stage_adapters + token_adapters + positions + layers


def step_cost(settings: LLMMorphSettings, size: StepSize) -> StepCost:
    """The cost of a training step."""
    llm = llm_size(settings.llm) if settings.blocks == "llm" else LLMSize(settings.token_width, 0)
    bfloat16 = size.machine.bfloat16
    tokens = math.prod(size.shape) // STRIDE**3
    costs = COSTS_GB * cost_channels(settings.cost_volume)
    activations = (FIELDS_GB + FEATURES_GB * settings.width / 16 + costs) * size.megavoxels
    activations *= (BFLOAT16_SHARE if bfloat16 else 1.0) * (RECOMPUTED_SHARE if size.recompute else 1.0)
    seconds = (BFLOAT16_SECONDS if bfloat16 else FLOAT32_SECONDS) * settings.width / 16 * size.megavoxels
    seconds *= (COSTS_TIME if settings.cost_volume else 1.0) * (RECOMPUTED_TIME if size.recompute else 1.0)
    return StepCost(
        trained_parameters(settings, llm.hidden, tokens),
        activations,
        seconds,
        frozen_bytes=(2 if bfloat16 else 4) * len(settings.llm.layers) * llm.layer_parameters,
        libraries_gb=LIBRARIES_GB,
    )
