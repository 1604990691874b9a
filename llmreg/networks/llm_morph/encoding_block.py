"""Encoding blocks: an adapter, then a layer in which tokens exchange information (LLM, ViT), or none."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from llmreg.networks.language_models.layer import FrozenLayer
from llmreg.networks.language_models.loading import LoadedLayers
from llmreg.networks.llm_morph.adapters import TokenAdapter
from llmreg.networks.llm_morph.settings import LLMMorphSettings

_VIT_HEAD = 64


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
        encoded: Tensor = self.norm(self.layer(self.adapter(tokens)).float())
        return encoded


def encoding_blocks(
    settings: LLMMorphSettings, channels: int, hidden: int, token_grid: Sequence[int], loaded: LoadedLayers | None
) -> nn.ModuleList:
    """The blocks of a network, one after the other.

    Args:
        settings: the network's settings; ``blocks`` says of which kind they are.
        channels: channels of the encoders' deepest features, both images together.
        hidden: channels inside the adapters.
        token_grid: (d, h, w).
        loaded: the language model's layers, for blocks of the kind ``llm`` only.
    """
    width, eps = settings.token_width, 1e-6
    if settings.blocks == "llm":
        assert loaded is not None
        width = int(loaded.config.hidden_size)
        eps = float(getattr(loaded.config, "rms_norm_eps", eps))
        layers: list[nn.Module | None] = [
            FrozenLayer(loaded, position, settings.llm, token_grid) for position in range(len(loaded.layers))
        ]
    elif settings.blocks == "vit":
        # Imported here, since it takes a second or two, for which the other kinds need not wait.
        from transformers import ViTConfig
        from transformers.models.vit.modeling_vit import ViTLayer

        config = ViTConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_attention_heads=max(1, width // _VIT_HEAD),
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        config._attn_implementation = "sdpa"
        layers = [ViTLayer(config) for _ in settings.llm.layers]
    elif settings.blocks == "adapters":
        layers = [None for _ in settings.llm.layers]
    else:
        layers = []
    incoming = [channels] + [width] * len(layers)
    return nn.ModuleList(
        EncodingBlock(before, hidden, width, layer, final_norm=settings.final_norm, eps=eps)
        for before, layer in zip(incoming, layers, strict=False)
    )
