"""The families of language models whose decoder layers can be used, in transformers' own classes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from inspect import signature
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llmreg.errors import BadLanguageModel, UnknownName
from llmreg.networks.language_models.llm_settings import LLMSettings

# Key of a configuration for a rotary scaling of the model that transformers' keys cannot express.
UNKNOWN_ROTARY = "unknown_rotary"


@dataclass(frozen=True)
class Family:
    """Where transformers keeps a family's layer and what a checkpoint calls its parts.

    Attributes:
        name: transformers' ``model_type`` of the text model.
        prefix: transformers' prefix of the family's classes.
        layer: the decoder layer's class, after the prefix.
        container: what checkpoints call the list of layers.
        first_norm: a tensor that every decoder layer has, and no layer of a vision tower.
        attention: the attention module's name in the layer.
        fused: the projection that holds q, k and v in one matrix, if there is one.
        rotary: whether the family rotates queries and keys.
        kernel: transformers' attention implementation.
    """

    name: str
    prefix: str
    layer: str = "DecoderLayer"
    container: str = "layers"
    first_norm: str = "input_layernorm.weight"
    attention: str = "self_attn"
    fused: str | None = None
    rotary: bool = True
    kernel: str = "sdpa"

    def _class(self, name: str) -> Any:
        folder = self.name.removesuffix("_text")
        return getattr(import_module(f"transformers.models.{folder}.modeling_{folder}"), self.prefix + name)

    def build_layer(self, config: PreTrainedConfig, index: int, device: str = "meta") -> nn.Module:
        """Decoder layer ``index`` with transformers' initial weights (on the meta device: none)."""
        with torch.device(device):
            return cast(nn.Module, self._class(self.layer)(config, layer_idx=index))

    def build_rotary(self, config: PreTrainedConfig, index: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The rotary embedding of layer ``index``: from hidden states and positions (B, L) to cos and sin (B, L, D)."""
        rotary = self._class("RotaryEmbedding")(config)
        # Some families rotate their sliding layers by other angles than their full ones.
        by_type = "layer_type" in signature(rotary.forward).parameters
        return partial(rotary, layer_type=config.layer_types[index]) if by_type else rotary


FAMILIES = {
    family.name: family
    for family in (
        Family("llama", "Llama"),
        Family("mistral", "Mistral"),
        Family("qwen2", "Qwen2"),
        Family("qwen3", "Qwen3"),
        Family("phi3", "Phi3", fused="qkv_proj"),
        # Its attention scores pass through a tanh, which sdpa does not have.
        Family("gemma2", "Gemma2", kernel="eager"),
        Family("gemma3_text", "Gemma3"),
        Family("gpt2", "GPT2", "Block", "h", "ln_1.weight", "attn", "c_attn", rotary=False),
    )
}
# Models with a picture encoder: their text model is what is used.
_TEXT_MODEL = {"phi3_v": "phi3", "gemma3": "gemma3_text"}


def family_of(config: Mapping[str, Any], where: str) -> Family:
    """The family of a model by its ``config.json``.

    Raises:
        BadLanguageModel: the family is not among the known ones.
    """
    model_type = str(config.get("model_type")) if isinstance(config, dict) else "none"
    family = FAMILIES.get(_TEXT_MODEL.get(model_type, model_type))
    if family is None:
        known = ", ".join(sorted(FAMILIES | _TEXT_MODEL))
        raise BadLanguageModel(
            where,
            f"is of the family '{model_type}', which is not supported",
            f"choose a model of one of the families {known}",
        )
    return family


def build_config(config: Mapping[str, Any], family: Family, where: str) -> PreTrainedConfig:
    """Transformers' configuration of the text model, without dropout.

    Raises:
        BadLanguageModel: the configuration makes no sense; ``where`` is what the message calls the model.
    """
    try:
        text = {
            key: value
            # A model with a picture encoder nests the text model's part, or has everything at the top.
            for key, value in {**config, **config.get("text_config", {})}.items()
            if key not in ("text_config", "vision_config", "auto_map")
        }
        # Families call dropout by three names.
        text |= {"model_type": family.name, "attention_dropout": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
        scaling = text.get("rope_scaling") or {}
        if scaling.get("type") == "su":
            # Phi-3's first name for it; transformers accepts the name, but then misses the length that belongs to it.
            text["rope_scaling"] = {**scaling, "type": "longrope"}
        built: PreTrainedConfig = CONFIG_MAPPING[family.name].from_dict(text)
        built._attn_implementation = family.kernel
    except (TypeError, ValueError, AttributeError, KeyError, ArithmeticError, StrictDataclassError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadLanguageModel(where, f"has a damaged configuration ({first})", "get the model again") from error
    return built


def head_dim(config: PreTrainedConfig) -> int:
    """Channels of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def split_fused(layer: nn.Module, family: Family, config: PreTrainedConfig) -> None:
    """Replace a projection that holds q, k and v in one matrix by three, so that each can be adapted on its own.

    The three share the memory of the one. Families without such a projection are left as they are.
    """
    if family.fused is None:
        return
    attention = layer.get_submodule(family.attention)
    fused: Any = attention.get_submodule(family.fused)
    # GPT-2's Conv1D keeps its weight transposed.
    weight = fused.weight if isinstance(fused, nn.Linear) else fused.weight.T
    queries = config.num_attention_heads * head_dim(config)
    # There are as many values as keys.
    keys = (len(weight) - queries) // 2
    setattr(attention, family.fused, SplitProjection(weight, fused.bias, (queries, keys, keys)))


class SplitProjection(nn.Module):
    """q, k and v from three linear layers, concatenated along the channels as by the fused one."""

    def __init__(self, weight: Tensor, bias: Tensor | None, sizes: tuple[int, int, int]) -> None:
        super().__init__()
        weights = weight.detach().split(sizes)
        biases = (None,) * 3 if bias is None else bias.detach().split(sizes)
        for name, part, offset in zip(("q_proj", "k_proj", "v_proj"), weights, biases, strict=True):
            linear = nn.Linear(part.shape[1], part.shape[0], device="meta")
            linear.weight = nn.Parameter(part, requires_grad=False)
            linear.register_parameter("bias", None if offset is None else nn.Parameter(offset, requires_grad=False))
            self.add_module(name, linear)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, H) -> (B, L, Q + K + V)."""
        return torch.cat([projection(hidden) for projection in self.children()], dim=-1)


def check_runnable(config: Mapping[str, Any], settings: LLMSettings) -> None:
    """Check that a model's layers can be run as the settings say.

    Raises:
        BadLanguageModel: the family is unknown or has no rotary embedding that can be used.
        UnknownName: a LoRA target is not in the layers.
    """
    family = family_of(config, settings.source)
    if settings.rotary != "none" and not family.rotary:
        raise BadLanguageModel(
            settings.source,
            f"has no rotary embedding, as all of the family '{family.name}'",
            "set network.llm.rotary to none",
        )
    if settings.rotary != "none" and UNKNOWN_ROTARY in config:
        raise BadLanguageModel(
            settings.source,
            f"scales its rotary embedding in a way that is not supported ({config[UNKNOWN_ROTARY]})",
            "set network.llm.rotary to none, or use the model's safetensors",
        )
    if settings.lora is None:
        return
    built = build_config(config, family, settings.source)
    layer = family.build_layer(built, 0)
    split_fused(layer, family, built)
    linear = {name.split(".")[-1] for name, part in layer.named_modules() if isinstance(part, nn.Linear)}
    for target in settings.lora.targets:
        if target not in linear:
            raise UnknownName("LoRA target", target, sorted(linear), f"These are the layers of {settings.source}.")
