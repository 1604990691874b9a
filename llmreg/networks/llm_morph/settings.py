"""Settings of LLM-Morph."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from llmreg.networks.language_models.settings import LLMSettings
from llmreg.networks.registry import NetworkSettings


class LLMMorphSettings(NetworkSettings):
    """LLM-Morph (:class:`llmreg.networks.llm_morph.network.LLMMorph`).

    Attributes:
        width: channels c at full resolution; the levels have c, 2c, 4c, 8c and 16c.
        normalization: what follows each convolution (the adapters over tokens are always normalised).
        reshape: ``half`` shuffles tokens to half a stage's resolution and a transposed convolution does the rest;
            ``direct`` shuffles straight to the stage's resolution.
        accumulate: ``compose`` composes the fields of the stages; ``sum`` adds them and leaves the values of an
            upsampled field as they are, like the authors' earlier code.
        cost_volume: radius, in voxels of the stage, within which the decoder is told how unlike the images are
            (:mod:`llmreg.networks.llm_morph.cost_volume`); 0, as in the paper: it is not told.
        position_embedding: learned embedding added to the tokens before the first block.
        final_norm: an RMSNorm at the end of each block.
        blocks: what the tokens pass through. ``llm``: language-model encoding blocks. ``vit``: vision-transformer
            layers that are trained, in their place. ``adapters``: the adapters alone. ``none``: nothing, so that the
            decoder is fed by the encoders' skip connections alone.
        token_width: channels of the tokens of ``vit`` and ``adapters``, in plans that are made the language model's;
            a language model has its own.
    """

    # With a default, since the first plans did not name their network.
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
    def _check_width(self) -> LLMMorphSettings:
        if self.reshape == "direct" and self.width % 4:
            raise ValueError("reshape 'direct' needs a width that is a multiple of 4")
        return self


def cost_channels(radius: int) -> int:
    """Channels of a cost volume: one for each step within the radius; none without a radius."""
    return (2 * radius + 1) ** 3 if radius else 0
