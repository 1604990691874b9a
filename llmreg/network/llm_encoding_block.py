"""The language-model encoding block: an adapter, then one frozen decoder layer with LoRA."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llmreg.network.adapters import TokenAdapter
from llmreg.network.config import LLMSettings, LoRASettings


class LLMEncodingBlock(nn.Module):
    """Adapter_0 and a frozen pretrained decoder layer (LEB).

    Args:
        channels: channels of the tokens that come in.
        hidden: channels between the adapter's two linear layers.
        layer: a frozen decoder layer of the language model; owned by this block from now on.
        config: the language model's configuration.
        settings: how the layer is run.
        final_norm: end with an RMSNorm.
    """

    def __init__(
        self, channels: int, hidden: int, layer: nn.Module, config: LlamaConfig, settings: LLMSettings, final_norm: bool
    ) -> None:
        super().__init__()
        width = int(config.hidden_size)
        self.adapter = TokenAdapter(channels, hidden, width)
        # sdpa takes a missing mask for a causal one unless the module says otherwise.
        attention: Any = layer.get_submodule("self_attn")
        attention.is_causal = settings.attention == "causal"
        if settings.lora is not None:
            _inject_lora(layer, settings.lora)
        self.layer = layer
        self.norm = nn.RMSNorm(width, eps=float(config.rms_norm_eps)) if final_norm else None
        self.rotary = _rotary(config) if settings.rotary == "1d" else None
        self.scale = settings.token_rms
        self._head_dim = int(getattr(config, "head_dim", None) or width // int(config.num_attention_heads))
        self._dtype = next(p.dtype for p in layer.parameters() if not p.requires_grad)

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode tokens (B, L, channels) to (B, L, H), H the language model's width; float32 out."""
        tokens = self.adapter(tokens)
        output = self.run_layer(tokens * self.scale).float()
        return output / self.scale if self.norm is None else self.norm(output)

    def run_layer(self, hidden: Tensor) -> Tensor:
        """The frozen decoder layer alone, (B, L, H) -> (B, L, H) in the frozen weights' type."""
        # Autocast would copy the frozen weights to its own type at every call.
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.to(self._dtype)
            positions = self._position_embeddings(hidden)
            output: Tensor = self.layer(hidden, attention_mask=None, position_embeddings=positions)
        return output

    def _position_embeddings(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        length = hidden.shape[1]
        if self.rotary is not None:
            cos, sin = self.rotary(hidden, torch.arange(length, device=hidden.device)[None])
            return cos, sin
        # cos 1 and sin 0 leave queries and keys unrotated.
        shape = (1, 1, self._head_dim)
        return hidden.new_ones(shape), hidden.new_zeros(shape)

    def train(self, mode: bool = True) -> LLMEncodingBlock:
        """Switch the block's mode; the frozen layer stays in evaluation mode."""
        super().train(mode)
        self.layer.eval()
        return self


def _inject_lora(layer: nn.Module, settings: LoRASettings) -> None:
    lora = LoraConfig(r=settings.r, lora_alpha=settings.alpha, target_modules=list(settings.targets))
    inject_adapter_in_model(lora, layer)
    for name, parameter in layer.named_parameters():
        trainable = "lora_" in name
        parameter.requires_grad_(trainable)
        if trainable:
            parameter.data = parameter.data.float()


def _rotary(config: LlamaConfig) -> nn.Module:
    rotary: nn.Module = LlamaRotaryEmbedding(config)
    return rotary
