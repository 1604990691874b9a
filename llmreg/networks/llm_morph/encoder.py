"""From images to tokens: the convolutional encoder of one image, and the encoding blocks on both images' tokens.

An encoding block is an adapter, then a layer in which tokens exchange information (LLM, ViT), or none.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from llmreg.networks.fast_layers import call_with_checkpointing
from llmreg.networks.language_models.layer import FrozenLayer
from llmreg.networks.language_models.loading import LoadedLayers
from llmreg.networks.layers import SLOPE, ConvBlock
from llmreg.networks.llm_morph.plugin import LLMMorphSettings


class Encoder(nn.Module):
    """Five levels with c, 2c, 4c, 8c, 16c channels at 1, 1/2, 1/4, 1/8, 1/16 of the resolution.

    Args:
        width: c.
        normalization: ``instance`` or ``none``.
        with_tokens: whether there is the fifth level, which only the encoding blocks look at.
    """

    def __init__(self, width: int, normalization: str, *, with_tokens: bool = True) -> None:
        super().__init__()
        finest = nn.Sequential(ConvBlock(1, width, normalization), ConvBlock(width, width, normalization))
        coarser = (
            nn.Sequential(
                ConvBlock(channels // 2, channels, normalization, stride=2),
                ConvBlock(channels, channels, normalization),
                ConvBlock(channels, channels, normalization),
            )
            for channels in (2 * width, 4 * width, 8 * width)
        )
        self.levels = nn.ModuleList([finest, *coarser])
        if with_tokens:
            self.levels.append(ConvBlock(8 * width, 16 * width, normalization, stride=2))

    def forward(self, image: Tensor, *, recompute: bool = False) -> list[Tensor]:
        """Features of an image (B, 1, z, y, x), finest first; ``recompute``: gradient checkpointing of the finest."""
        finest, *coarser = self.levels
        pyramid = [call_with_checkpointing(finest, image, when=recompute)]
        for level in coarser:
            pyramid.append(level(pyramid[-1]))
        return pyramid


class TokenAdapter(nn.Module):
    """Adapter_0: Linear, InstanceNorm over the tokens, LeakyReLU, Linear."""

    def __init__(self, channels: int, hidden: int, width: int) -> None:
        super().__init__()
        self.widen = nn.Linear(channels, hidden)
        self.weight = nn.Parameter(torch.ones(hidden))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.project = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, H)."""
        hidden = self.widen(tokens).float()
        variance, mean = torch.var_mean(hidden, dim=1, keepdim=True, correction=0)
        hidden = (hidden - mean) * torch.rsqrt(variance + 1e-5) * self.weight + self.bias
        return cast(Tensor, self.project(nn.functional.leaky_relu(hidden, SLOPE)))


class EncodingBlock(nn.Module):
    """Adapter_0, a layer on tokens, and an RMSNorm; the paper's LEB where the layer is a language model's.

    Args:
        channels: channels of the tokens that come in.
        hidden: channels between the adapter's two linear layers.
        width: channels H of the tokens that go out.
        layer: (B, L, H) -> (B, L, H); None for the adapter alone.
        final_norm: end with an RMSNorm.
        eps: of the RMSNorm.
    """

    def __init__(
        self, channels: int, hidden: int, width: int, layer: nn.Module | None, *, final_norm: bool, eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.adapter = TokenAdapter(channels, hidden, width)
        self.layer = nn.Identity() if layer is None else layer
        self.norm = nn.RMSNorm(width, eps=eps) if final_norm else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode tokens (B, L, channels) to (B, L, H), float32."""
        return cast(Tensor, self.norm(self.layer(self.adapter(tokens)).float()))


def encoding_blocks(
    settings: LLMMorphSettings, channels: int, hidden: int, token_grid: Sequence[int], loaded: LoadedLayers | None
) -> nn.ModuleList:
    """The blocks of a network, one after the other.

    Args:
        settings: the network's settings; ``blocks`` names the kind of the blocks.
        channels: channels of the encoders' deepest features, both images together.
        hidden: channels inside the adapters.
        token_grid: (d, h, w).
        loaded: the language model's layers, for blocks of the kind ``llm`` only.
    """
    width, eps = settings.token_width, 1e-6
    layers: Sequence[nn.Module | None] = ()
    if settings.blocks == "llm":
        assert loaded is not None
        width = int(loaded.config.hidden_size)
        eps = float(getattr(loaded.config, "rms_norm_eps", eps))
        layers = [FrozenLayer(loaded, position, settings.llm, token_grid) for position in range(len(loaded.layers))]
    elif settings.blocks == "vit":
        # transformers is imported here, since that takes a second or two, and the other kinds do not need it.
        from transformers import ViTConfig
        from transformers.models.vit.modeling_vit import ViTLayer

        config = ViTConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_attention_heads=max(1, width // 64),
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        config._attn_implementation = "sdpa"
        layers = [ViTLayer(config) for _ in settings.llm.layers]
    elif settings.blocks == "adapters":
        layers = [None for _ in settings.llm.layers]
    incoming = [channels] + [width] * len(layers)
    return nn.ModuleList(
        EncodingBlock(before, hidden, width, layer, final_norm=settings.final_norm, eps=eps)
        for before, layer in zip(incoming, layers, strict=False)
    )
