"""Settings of the network: what plans.json holds and a checkpoint must agree with."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, model_validator

# The networks there are, as commands and settings name them.
NETWORKS = {
    "llm_morph": "LLM-Morph, around layers of a language model",
    "voxelmorph": "a U-Net (327 k parameters; 92 k with network.size=small)",
    "transmorph": "a Swin transformer and a convolutional decoder (46.8 M; 14.3 M with network.stages=3)",
    "mambamorph": "Mamba layers and a convolutional decoder (7.6 M; 7.3 M with network.features=false)",
    "dual_pyramid": "Dual-PRNet's pyramid of both images' features, compared level by level (200 k)",
}


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LoRASettings(_Settings):
    """Low-rank adaptation of the frozen layers' projections; the paper's h = Wx + BAx is alpha = r."""

    r: int = Field(default=64, ge=1)
    alpha: int = Field(default=64, ge=1)
    targets: tuple[str, ...] = Field(default=("q_proj", "k_proj", "v_proj"), min_length=1)


class LLMSettings(_Settings):
    """Which pretrained decoder layers the language-model encoding blocks hold, and how they are run.

    Attributes:
        source: ``smollm2-135m``, a Hugging Face folder, a GGUF file, or a hub id.
        layers: zero-based indices of the decoder layers, one for each block.
        weights: ``random`` replaces the pretrained weights by the model's initial ones, drawn with a fixed seed.
        dtype: type the frozen weights are kept and computed in; ``bfloat16`` is rounded to, but held and computed in
            float32 where the hardware does not compute in it.
        attention: ``bidirectional`` lets each token see all others, ``causal`` only those before it.
        rotary: the model's own rotary embedding, along the flattened tokens (``1d``) or the token grid (``3d``).
        calibrate: each token enters a layer with the root mean square that hidden states have there in the original
            model (1 where nobody measured it), and what leaves the layer is divided by it. Off by default: it
            did not help on 24 brains (see documentation/results.md).
        sha256: digest of the layers' stored weights; loading others is refused. None accepts any.
        lora: low-rank adaptation, or None to use the layers as they are.
    """

    source: str = "smollm2-135m"
    layers: tuple[int, ...] = Field(default=(15, 16), min_length=1, max_length=2)
    weights: Literal["pretrained", "random"] = "pretrained"
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    attention: Literal["bidirectional", "causal"] = "bidirectional"
    rotary: Literal["none", "1d", "3d"] = "none"
    calibrate: bool = False
    sha256: str | None = None
    lora: LoRASettings | None = LoRASettings()

    @model_validator(mode="after")
    def _layers_exist(self) -> LLMSettings:
        if min(self.layers) < 0:
            raise ValueError("layers are counted from 0")
        return self


class LLMMorphSettings(_Settings):
    """LLM-Morph as built by :func:`llmreg.networks.factory.build_network`.

    Attributes:
        width: channels c at full resolution; the levels have c, 2c, 4c, 8c and 16c.
        normalization: what follows each convolution (the adapters over tokens are always normalised).
        reshape: ``half`` shuffles tokens to half a stage's resolution and a transposed convolution does the rest;
            ``direct`` shuffles straight to the stage's resolution.
        accumulate: ``compose`` composes the fields of the stages; ``sum`` adds them and leaves the values of an
            upsampled field as they are, like the authors' earlier code.
        cost_volume: how far around each voxel, in voxels of the stage, the decoder is told how unlike the images are
            (:mod:`llmreg.networks.llm_morph.cost_volume`); 0, as in the paper: it is not told.
        field: what the decoder's output is. ``displacement``: the displacement itself. ``velocity``: a stationary
            velocity, whose flow over unit time is the displacement; the negated velocity leads back.
        position_embedding: learned embedding added to the tokens before the first block.
        final_norm: an RMSNorm at the end of each block.
        blocks: what the tokens pass through. ``llm``: language-model encoding blocks. ``vit``: vision-transformer
            layers that are trained, in their place. ``adapters``: the adapters alone. ``none``: nothing, so that the
            decoder is fed by the encoders' skip connections alone.
        token_width: channels of the tokens of ``vit`` and ``adapters``, in plans that are made the language model's;
            a language model has its own.
    """

    name: Literal["llm_morph"] = "llm_morph"
    width: int = Field(default=16, ge=1)
    normalization: Literal["instance", "none"] = "instance"
    reshape: Literal["half", "direct"] = "half"
    accumulate: Literal["compose", "sum"] = "compose"
    cost_volume: int = Field(default=0, ge=0, le=3)
    field: Literal["displacement", "velocity"] = "displacement"
    position_embedding: bool = True
    final_norm: bool = True
    blocks: Literal["llm", "vit", "adapters", "none"] = "llm"
    token_width: int = Field(default=576, ge=1)
    llm: LLMSettings = LLMSettings()

    @model_validator(mode="after")
    def _width_shuffles(self) -> LLMMorphSettings:
        if self.reshape == "direct" and self.width % 4:
            raise ValueError("reshape 'direct' needs a width that is a multiple of 4")
        return self


def cost_channels(radius: int) -> int:
    """Of a cost volume: one for each step; none without a radius."""
    return (2 * radius + 1) ** 3 if radius else 0


class VoxelMorphSettings(_Settings):
    """VoxelMorph (:class:`llmreg.networks.voxelmorph.network.VoxelMorph`).

    Attributes:
        size: ``published``: the authors' default, 327,331 parameters; ``small``: the 92,179 of MambaMorph's scripts.
        field: see :class:`LLMMorphSettings`.
    """

    # Without a default, here and below: digests leave defaults out, and must tell the networks apart.
    name: Literal["voxelmorph"]
    size: Literal["published", "small"] = "published"
    field: Literal["displacement", "velocity"] = "velocity"


class TransMorphSettings(_Settings):
    """TransMorph (:class:`llmreg.networks.transmorph.network.TransMorph`).

    Attributes:
        stages: of the Swin transformer: 4 as published, or the 3 of MambaMorph's copy.
        drop_path: probability with which a training step skips the last block; that of those before rises to it from 0.
        field: see :class:`LLMMorphSettings`.
    """

    name: Literal["transmorph"]
    stages: Literal[3, 4] = 4
    drop_path: float = Field(default=0.3, ge=0.0, lt=1.0)
    field: Literal["displacement", "velocity"] = "displacement"


class MambaMorphSettings(_Settings):
    """MambaMorph (:class:`llmreg.networks.mambamorph.network.MambaMorph`).

    Attributes:
        features: whether both images pass through a shared feature extractor first.
        field: see :class:`LLMMorphSettings`.
    """

    name: Literal["mambamorph"]
    features: bool = True
    field: Literal["displacement", "velocity"] = "velocity"


class DualPyramidSettings(_Settings):
    """Dual-PRNet's pyramid (:class:`llmreg.networks.dual_pyramid.network.DualPyramid`).

    Attributes:
        width: channels c at full resolution; the levels have c, 2c, 2c, 4c and 4c.
        field: see :class:`LLMMorphSettings`; the fields of the levels are composed, as displacements are.
    """

    name: Literal["dual_pyramid"]
    width: int = Field(default=8, ge=1)
    field: Literal["displacement"] = "displacement"


def _name(settings: Any) -> str:
    """Which network settings are of: LLM-Morph where a file does not say."""
    return str(settings.get("name", "llm_morph") if isinstance(settings, dict) else getattr(settings, "name", None))


NetworkSettings: TypeAlias = Annotated[
    Annotated[LLMMorphSettings, Tag("llm_morph")]
    | Annotated[VoxelMorphSettings, Tag("voxelmorph")]
    | Annotated[TransMorphSettings, Tag("transmorph")]
    | Annotated[MambaMorphSettings, Tag("mambamorph")]
    | Annotated[DualPyramidSettings, Tag("dual_pyramid")],
    Discriminator(
        _name,
        custom_error_type="network_name",
        custom_error_message=f"there is no network of that name: choose {', '.join(NETWORKS)}",
    ),
]
_ANY: TypeAdapter[NetworkSettings] = TypeAdapter(NetworkSettings)


def network_settings(name: str, **changes: Any) -> NetworkSettings:
    """The default settings of a network, but for the changes. Raises pydantic's ValidationError where there is none."""
    return _ANY.validate_python({"name": name, **changes})


def language_model(settings: NetworkSettings) -> LLMSettings | None:
    """The language model whose layers a network has; None where it has none."""
    return settings.llm if isinstance(settings, LLMMorphSettings) and settings.blocks == "llm" else None
