"""Settings of the network: what plans.json holds and a checkpoint must agree with."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


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


class NetworkSettings(_Settings):
    """LLM-Morph as built by :func:`llmreg.network.factory.build_network`.

    Attributes:
        width: channels c at full resolution; the levels have c, 2c, 4c, 8c and 16c.
        normalization: what follows each convolution (the adapters over tokens are always normalised).
        reshape: ``half`` shuffles tokens to half a stage's resolution and a transposed convolution does the rest;
            ``direct`` shuffles straight to the stage's resolution.
        accumulate: ``compose`` composes the fields of the stages; ``sum`` adds them and leaves the values of an
            upsampled field as they are, like the authors' earlier code.
        field: what the decoder's output is. ``displacement``: the displacement itself. ``velocity``: a stationary
            velocity, whose flow over unit time is the displacement; the negated velocity leads back.
        position_embedding: learned embedding added to the tokens before the first block.
        final_norm: an RMSNorm at the end of each block.
        blocks: what the tokens pass through. ``llm``: language-model encoding blocks. ``vit``: vision-transformer
            layers that are trained, in their place. ``adapters``: the adapters alone. ``none``: nothing, so that the
            decoder is fed by the encoders' skip connections alone.
        token_width: channels of the tokens of ``vit`` and ``adapters``; a language model has its own.
    """

    name: Literal["llm_morph"] = "llm_morph"
    width: int = Field(default=16, ge=1)
    normalization: Literal["instance", "none"] = "instance"
    reshape: Literal["half", "direct"] = "half"
    accumulate: Literal["compose", "sum"] = "compose"
    field: Literal["displacement", "velocity"] = "displacement"
    position_embedding: bool = True
    final_norm: bool = True
    blocks: Literal["llm", "vit", "adapters", "none"] = "llm"
    token_width: int = Field(default=576, ge=1)
    llm: LLMSettings = LLMSettings()

    @model_validator(mode="after")
    def _width_shuffles(self) -> NetworkSettings:
        if self.reshape == "direct" and self.width % 4:
            raise ValueError("reshape 'direct' needs a width that is a multiple of 4")
        return self
