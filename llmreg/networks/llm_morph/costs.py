"""What a training step costs, in memory and time, before anything is built.

The constants are fitted to ``benchmarks/training_memory.py``, which also says how far they are off.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmreg.devices import Machine
from llmreg.networks.config import LLMMorphSettings, LLMSettings, cost_channels
from llmreg.plans.plans import Loss

# Weight, gradient and Adam's two moments.
BYTES_A_TRAINED = 16
# Of Python, PyTorch and its libraries; on a GPU of its context.
BASE_GB = 0.83
# Activations of a million network voxels: of images and fields, and of features at width 16; the share of both in
# bfloat16, and when the finest level is computed twice; what warping and Dice take on a million voxels of the grid.
FIELDS_GB, FEATURES_GB, BFLOAT16_SHARE, RECOMPUTED_SHARE, GRID_GB = 0.5, 1.3, 0.87, 0.7, 0.045
# What the image term takes on a million network voxels.
SIMILARITY_GB = 0.3
# Of a cost volume on a million network voxels, by channel: float32.
COSTS_GB = 0.0037
# Seconds of one CPU core for a million network voxels at width 16, forward and backward; how many times that the finest
# level computed twice and cost volumes take.
FLOAT32_SECONDS, BFLOAT16_SECONDS, RECOMPUTED_TIME, COSTS_TIME = 35.0, 9.2, 1.15, 1.2


@dataclass(frozen=True)
class LLMSize:
    """A language model's hidden width, and the parameters of one of its layers."""

    hidden: int
    layer_parameters: int


# SmolLM2-135M, the built-in one.
BUILT_IN_SIZE = LLMSize(576, 3_540_096)


def llm_size(settings: LLMSettings) -> LLMSize:
    """The size of the layers that settings name; those of a model that is not built in are looked up.

    Raises:
        UserError: they are nowhere to be found.
    """
    if settings.source == LLMSettings().source:
        return BUILT_IN_SIZE
    # Inside, since these import transformers, which takes seconds.
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


def trained_parameters(network: LLMMorphSettings, llm: LLMSize, tokens: int) -> float:
    """Number of trained parameters, to a percent or two: adapters, LoRA, convolutions, position embedding."""
    width, hidden = network.width, llm.hidden
    rank = 0 if network.llm.lora is None else network.llm.lora.r
    adapters = hidden * 1360 * width
    blocks = 32 * width * 64 * width + 3 * 64 * width * hidden + 9.4 * rank * hidden
    return adapters + blocks + 30_000 * width**2 + 32 * width * tokens


def training_memory_gb(
    network: LLMMorphSettings,
    llm: LLMSize,
    network_voxels: int,
    grid_voxels: int,
    recompute: bool,
    machine: Machine,
    loss: Loss,
    pairs: int = 1,
) -> float:
    """Peak memory (GiB) of training.

    Args:
        network: its settings.
        llm: the size of its frozen layers.
        network_voxels: of the images that the network sees.
        grid_voxels: of the padded grid, on which the loss is computed.
        recompute: whether the finest level is computed twice.
        machine: whether it computes in bfloat16.
        loss: whether it has an image term.
        pairs: in a step.
    """
    trained = BYTES_A_TRAINED * trained_parameters(network, llm, network_voxels // 16**3)
    frozen = (2 if machine.bfloat16 else 4) * len(network.llm.layers) * llm.layer_parameters
    costs = COSTS_GB * cost_channels(network.cost_volume)
    activations = (FIELDS_GB + FEATURES_GB * network.width / 16 + costs) * network_voxels / 1e6
    activations *= (BFLOAT16_SHARE if machine.bfloat16 else 1.0) * (RECOMPUTED_SHARE if recompute else 1.0)
    activations += SIMILARITY_GB * network_voxels / 1e6 if loss.similarity else 0.0
    return BASE_GB + (trained + frozen) / 2**30 + pairs * (activations + GRID_GB * grid_voxels / 1e6)


def step_seconds(network: LLMMorphSettings, network_voxels: int, recompute: bool, machine: Machine) -> float:
    """Rough time of a training step on a CPU."""
    seconds = (BFLOAT16_SECONDS if machine.bfloat16 else FLOAT32_SECONDS) * network.width / 16
    seconds *= COSTS_TIME if network.cost_volume else 1.0
    return seconds * (RECOMPUTED_TIME if recompute else 1.0) * network_voxels / 1e6 / machine.cores
