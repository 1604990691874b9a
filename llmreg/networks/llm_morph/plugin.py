"""LLM-Morph in the registry of networks: its settings, its ablations, and what a training step costs."""

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from llmreg.errors import UnknownName, UserError
from llmreg.networks.language_models.llm_settings import LLMSettings
from llmreg.networks.network_registry import NetworkPlugin, NetworkSettings, StepCost, StepSize, Variant, register
from llmreg.paths import llm_cache_folder

STRIDE = 16


class LLMMorphSettings(NetworkSettings):
    """LLM-Morph (:class:`llmreg.networks.llm_morph.network.LLMMorph`).

    Attributes:
        width: channels c at full resolution; the levels have c, 2c, 4c, 8c and 16c.
        normalization: what follows each convolution (the adapters over tokens are always normalised).
        reshape: ``half`` shuffles tokens to half a stage's resolution and a transposed convolution does the rest;
            ``direct`` shuffles straight to the stage's resolution.
        accumulate: ``compose`` composes the flows of the stages; ``sum`` adds them and leaves the values of an
            upsampled flow as they are, like the authors' earlier code.
        cost_volume: radius, in voxels of the stage, within which the decoder is told how unlike the images are
            (:func:`llmreg.networks.llm_morph.decoder.cost_volume`); 0, as in the paper: it is not told.
        position_embedding: learned embedding added to the tokens before the first block.
        final_norm: an RMSNorm at the end of each block.
        blocks: what the tokens pass through. ``llm``: language-model encoding blocks. ``vit``: vision-transformer
            layers that are trained, in their place. ``adapters``: the adapters alone. ``none``: nothing, so that the
            decoder is fed by the encoders' skip connections alone.
        token_width: channels of the tokens of ``vit`` and ``adapters``, in plans that are made the language model's;
            a language model has its own.
    """

    # The name has a default, since the first plans do not hold it.
    name: Literal["llm_morph"] = "llm_morph"
    width: int = Field(default=16, ge=1)
    normalization: Literal["instance", "none"] = "instance"
    reshape: Literal["half", "direct"] = "half"
    accumulate: Literal["compose", "sum"] = "compose"
    cost_volume: int = Field(default=0, ge=0, le=3)
    position_embedding: bool = True
    final_norm: bool = True
    blocks: Literal["llm", "vit", "adapters", "none"] = "llm"
    token_width: int = Field(default=576, ge=1)
    llm: LLMSettings = LLMSettings()

    @model_validator(mode="after")
    def _check_width(self) -> Self:
        if self.reshape == "direct" and self.width % 4:
            raise ValueError("reshape 'direct' needs a width that is a multiple of 4")
        return self


def cost_channels(radius: int) -> int:
    """Channels of a cost volume: one for each step within the radius; none without a radius."""
    return (2 * radius + 1) ** 3 if radius else 0


# These are the paper's ablations, and the controls that it lacks, as changes of the plans.
_ABLATIONS = {
    "no-blocks": Variant(
        "w/o LEBs and adapters",
        ("network.blocks=none",),
        "no encoding blocks, the decoder is fed by the skips alone (paper: 1)",
    ),
    "vit": Variant(
        "LEBs r/w ViTs",
        ("network.blocks=vit",),
        "vision-transformer layers instead of the language model's (paper: 2)",
    ),
    "no-lora": Variant("w/o LoRA", ("network.llm.lora=null",), "the language model's layers as they are (paper: 4)"),
    "random-weights": Variant(
        "random LLM weights", ("network.llm.weights=random",), "the same layers with random weights"
    ),
    "adapters-only": Variant(
        "adapters without LLM", ("network.blocks=adapters",), "the adapters without the language model's layers"
    ),
    "no-cost-volume": Variant("w/o cost volumes", ("network.cost_volume=0",), "no cost volumes, as in the paper"),
}

_LAYER_KEYS = tuple(f"network.llm.{key}=" for key in ("source", "layers", "weights"))
# The constants are fitted to benchmarks/training_memory.py, which measured 14 sizes of SmolLM2-135M's network in
# float32 and bfloat16; the estimate of memory is within 15 % of each.
# LIBRARIES_GB is the memory (GiB) of transformers and peft. The others are GiB of activations for a million network
# voxels: of images and flows, of features at width 16, and of one channel of a cost volume.
LIBRARIES_GB, FIELDS_GB, FEATURES_GB, COSTS_GB = 0.33, 0.5, 1.3, 0.0037
# These shares of the activations are left in bfloat16, and when the finest level is recomputed.
BFLOAT16_SHARE, RECOMPUTED_SHARE = 0.87, 0.7
# Seconds of one CPU core for a million network voxels at width 16, forward and backward.
FLOAT32_SECONDS, BFLOAT16_SECONDS = 35.0, 9.2
# The time is multiplied by these when the finest level is recomputed, and with cost volumes.
RECOMPUTED_TIME, COSTS_TIME = 1.15, 1.2
# The hidden width of SmolLM2-135M, the built-in model, and the parameters of one of its layers.
BUILT_IN_SIZE = 576, 3_540_096


@lru_cache
def llm_size(settings: LLMSettings) -> tuple[int, int]:
    """The hidden width and the parameters of a layer that settings name; a model that is not built in is looked up.

    Raises:
        UserError: they are nowhere to be found.
    """
    if settings.source == LLMSettings().source:
        return BUILT_IN_SIZE
    # These are imported here, since they import transformers, which takes seconds.
    from llmreg.networks.language_models.families import build_config, family_of
    from llmreg.networks.language_models.loading import find_layers

    stored = find_layers(settings, llm_cache_folder())
    config = build_config(stored.config, family_of(stored.config, stored.source), stored.source)
    hidden = int(config.hidden_size)
    inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    heads = int(config.num_attention_heads)
    keys = int(getattr(config, "num_key_value_heads", None) or heads)
    return hidden, int(hidden * (2 * hidden * (1 + keys / heads) + 3 * inner))


def trained_parameters(settings: LLMMorphSettings, hidden: int, tokens: int) -> float:
    """Number of trained parameters, to some percent.

    Args:
        settings: the network's settings.
        hidden: channels of the tokens.
        tokens: how many there are; each has a position embedding.
    """
    width, blocks = settings.width, len(settings.llm.layers)
    # This is the number in both encoders' first four levels and the decoder.
    convolutions = 19_500 * width**2
    if settings.blocks == "none":
        return convolutions
    # This adds the encoders' last level and the decoder's convolutions over the adapters' features.
    convolutions += 10_500 * width**2
    adapters = 1360 * width * hidden + 2048 * width**2 + (2 * blocks - 1) * 64 * width * hidden
    positions = 32 * width * tokens if settings.position_embedding else 0
    rank = 0 if settings.llm.lora is None else settings.llm.lora.r
    layers = {"vit": 12 * hidden**2, "llm": 4.7 * rank * hidden}.get(settings.blocks, 0) * blocks
    return convolutions + adapters + positions + layers


class LLMMorphPlugin(NetworkPlugin[LLMMorphSettings]):
    """LLM-Morph with all kinds of encoding blocks."""

    name = "llm_morph"
    title = "LLM-Morph"
    summary = "LLM-Morph, around layers of a language model"
    settings_type = LLMMorphSettings
    network = "llmreg.networks.llm_morph.network:LLMMorph"
    size_setting = "width"
    sizes = (16, 12, 8)
    ablations = {name: variant.summary for name, variant in _ABLATIONS.items()} | {
        "one-block": "the first encoding block alone (paper: 3)",
        "layers-I-J": "layers I and J of the language model",
        "layers-I-J-no-lora": "those layers as they are",
    }
    # The paper compares language models without LoRA.
    llm_ablation = "no-lora"
    recipe: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "loss": {"dice": 1.0, "similarity": 0.0, "smoothness": 0.1},
        "training": {
            "learning_rate": 1e-4,
            "schedule": "constant",
            "clip_gradient": None,
            "epochs": 50,
            "steps_per_epoch": 1620,
        },
        "augmentation": {"mirror_axes": (), "spatial_probability": 0.0, "intensity_probability": 0.0},
        "reasons": {
            "paper": "The paper's settings (Implementing Details); its abdomen has 1,620 pairs and 50 epochs, its "
            "brain 300 epochs."
        },
    }

    def step_cost(self, settings: LLMMorphSettings, size: StepSize) -> StepCost:
        hidden, frozen = llm_size(settings.llm) if settings.blocks == "llm" else (settings.token_width, 0)
        bfloat16 = size.machine.bfloat16
        activations = FIELDS_GB + FEATURES_GB * settings.width / 16 + COSTS_GB * cost_channels(settings.cost_volume)
        activations *= size.megavoxels
        activations *= (BFLOAT16_SHARE if bfloat16 else 1.0) * (RECOMPUTED_SHARE if size.recompute else 1.0)
        seconds = (BFLOAT16_SECONDS if bfloat16 else FLOAT32_SECONDS) * settings.width / 16 * size.megavoxels
        seconds *= (COSTS_TIME if settings.cost_volume else 1.0) * (RECOMPUTED_TIME if size.recompute else 1.0)
        return StepCost(
            trained_parameters(settings, hidden, math.prod(size.shape) // STRIDE**3),
            activations,
            seconds,
            frozen_bytes=(2 if bfloat16 else 4) * len(settings.llm.layers) * frozen,
            libraries_gb=LIBRARIES_GB,
        )

    def default_settings(self) -> LLMMorphSettings:
        # This is the paper's network but for cost volumes, with which it learns faster.
        return LLMMorphSettings(cost_volume=1)

    def as_published(self, settings: LLMMorphSettings) -> LLMMorphSettings:
        return settings.model_copy(update={"cost_volume": 0})

    def stride(self, settings: LLMMorphSettings) -> int:
        return STRIDE

    def token_grid(self, settings: LLMMorphSettings, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(size // STRIDE for size in shape)

    def language_model(self, settings: LLMMorphSettings) -> LLMSettings | None:
        return settings.llm if settings.blocks == "llm" else None

    def fetch_weights(self, settings: LLMMorphSettings) -> LLMMorphSettings:
        if self.language_model(settings) is None:
            return settings
        from llmreg.networks.language_models.loading import fetch

        return settings.model_copy(update={"llm": fetch(settings.llm, llm_cache_folder())})

    def with_language_model(
        self, settings: LLMMorphSettings, source: str | None, layers: Sequence[str] | None
    ) -> LLMMorphSettings:
        from llmreg.networks.language_models.loading import fetch, select_layers

        fetched = fetch(select_layers(source, layers, settings.llm), llm_cache_folder())
        # What takes the layers' place in ablations has their width.
        return settings.model_copy(update={"llm": fetched, "token_width": llm_size(fetched)[0]})

    def language_model_changes(self, settings: LLMMorphSettings, source: str, layers: Sequence[int]) -> tuple[str, ...]:
        return f"network.llm.source={source}", f"network.llm.layers=[{','.join(map(str, layers))}]"

    def without_digests(self, settings: LLMMorphSettings, changes: Sequence[str]) -> LLMMorphSettings:
        # The digest is that of the layers that these keys choose.
        if not any(change.startswith(_LAYER_KEYS) for change in changes):
            return settings
        return settings.model_copy(update={"llm": settings.llm.model_copy(update={"sha256": None})})

    def ablation(self, settings: LLMMorphSettings, name: str) -> Variant:
        if (without := name.removesuffix(f"-{self.llm_ablation}")) != name:
            layers, no_lora = self.ablation(settings, without), _ABLATIONS[self.llm_ablation]
            return Variant(f"{layers.title}, {no_lora.title}", layers.changes + no_lora.changes, no_lora.summary)
        if pair := re.fullmatch(r"layers-(\d+)-(\d+)", name):
            first, second = map(int, pair.groups())
            return Variant(
                f"layers {first}/{second}", (f"network.llm.layers=[{first},{second}]",), self.ablations["layers-I-J"]
            )
        if name == "one-block":
            return Variant("w/ one LEB", (f"network.llm.layers=[{settings.llm.layers[0]}]",), self.ablations[name])
        if name == "no-cost-volume" and not settings.cost_volume:
            raise UserError("These plans have no cost volumes that could be taken away.")
        if name not in _ABLATIONS:
            raise UnknownName("ablation", name, [*self.ablations, "layers-0-1"])
        return _ABLATIONS[name]


register(LLMMorphPlugin())
