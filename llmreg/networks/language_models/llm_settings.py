"""Settings of frozen language-model layers, for any network that has some."""

from typing import Any, Literal

from pydantic import Field, field_validator

from llmreg.settings import Settings


class LoRASettings(Settings):
    """Low-rank adaptation of the frozen layers' projections; the paper's h = Wx + BAx is alpha = r."""

    r: int = Field(default=64, ge=1)
    alpha: int = Field(default=64, ge=1)
    targets: tuple[str, ...] = Field(default=("q_proj", "k_proj", "v_proj"), min_length=1)


class LLMSettings(Settings):
    """Which pretrained decoder layers the language-model encoding blocks hold, and how they are run.

    Attributes:
        source: ``smollm2-135m``, a Hugging Face folder, a GGUF file, or a hub id.
        layers: zero-based indices of the decoder layers, one for each block.
        weights: ``random`` replaces the pretrained weights by the model's initial ones, drawn with a fixed seed.
        dtype: type the frozen weights are kept and computed in. Where the hardware does not compute in ``bfloat16``,
            weights are rounded to it, but held and computed in float32.
        attention: ``bidirectional`` lets each token see all others, ``causal`` only those before it.
        rotary: the model's own rotary embedding, along the flattened tokens (``1d``) or the token grid (``3d``).
        calibrate: always false; plans of earlier versions hold it.
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

    @field_validator("layers")
    @classmethod
    def _check_layers(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if min(layers) < 0:
            raise ValueError("layers are counted from 0")
        return layers

    @field_validator("calibrate")
    @classmethod
    def _refuse_calibration(cls, value: Any) -> Any:
        if value:
            raise ValueError("calibrated layers did not help and were removed after version 0.1: train without them")
        return value
