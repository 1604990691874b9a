"""LLM-Morph: deformable registration of two images with frozen language-model layers at the bottom."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from llmreg.networks.language_models.layer import merge_lora
from llmreg.networks.language_models.loading import LoadedLayers
from llmreg.networks.llm_morph.decoder import Decoder, StageAdapter
from llmreg.networks.llm_morph.encoder import Encoder, encoding_blocks
from llmreg.networks.llm_morph.plugin import STRIDE, LLMMorphSettings
from llmreg.networks.registration_network import RegistrationNetwork


class LLMMorph(RegistrationNetwork):
    """Dual encoders, encoding blocks on their deepest features, adapters and a coarse-to-fine decoder.

    Args:
        settings: the network's settings.
        shape: (z, y, x) of the images, each a multiple of 16.
        loaded: the frozen decoder layers; None when the settings' blocks have none.

    Raises:
        ValueError: the shape is not a multiple of 16.
    """

    adaptation = "lora_"

    def __init__(self, settings: LLMMorphSettings, shape: Sequence[int], loaded: LoadedLayers | None = None) -> None:
        super().__init__(shape, settings.field)
        if any(size % STRIDE for size in self.shape):
            raise ValueError(f"shape {self.shape} is not three multiples of {STRIDE}")
        d, h, w = (size // STRIDE for size in self.shape)
        self.token_grid = (d, h, w)
        # Both images' deepest features have this number of channels together, and an adapter's hidden layer the other.
        channels, hidden = 32 * settings.width, 64 * settings.width
        self.llm_sha256 = "" if loaded is None else loaded.sha256
        with_tokens = settings.blocks != "none"
        self.moving_encoder = Encoder(settings.width, settings.normalization, with_tokens=with_tokens)
        self.fixed_encoder = Encoder(settings.width, settings.normalization, with_tokens=with_tokens)
        self.position_embedding: nn.Parameter | None = None
        if settings.position_embedding and with_tokens:
            self.position_embedding = nn.Parameter(torch.empty(1, d * h * w, channels).normal_(std=0.02))
        self.blocks = encoding_blocks(settings, channels, hidden, self.token_grid, loaded)
        token_width = settings.token_width if loaded is None else int(loaded.config.hidden_size)
        adapters = [
            StageAdapter(token_width, settings.width, stage, direct=settings.reshape == "direct")
            for stage in (1, 2, 3, 4)
            if with_tokens
        ]
        self.adapters = nn.ModuleList(adapters)
        adapted_channels = [adapter.channels for adapter in adapters] or [0] * 4
        self.decoder = Decoder(
            settings.width, adapted_channels, settings.normalization, settings.accumulate, settings.cost_volume
        )

    def merge_lora(self) -> Callable[[], None] | None:
        return merge_lora(self)

    def predict(self, moving: Tensor, fixed: Tensor) -> Tensor:
        recompute = self.checkpoints_gradients
        moving_features = self.moving_encoder(moving, recompute=recompute)
        fixed_features = self.fixed_encoder(fixed, recompute=recompute)
        adapted = self._adapt(moving_features[4], fixed_features[4]) if self.adapters else [None] * 4
        return cast(
            Tensor, self.decoder(adapted, moving_features, fixed_features, (moving, fixed), recompute=recompute)
        )

    def _adapt(self, moving: Tensor, fixed: Tensor) -> list[Tensor]:
        """Compute F^1 to F^4 from the deepest features."""
        tokens = torch.cat([moving, fixed], dim=1).flatten(2).transpose(1, 2)
        if self.position_embedding is not None:
            tokens = tokens + self.position_embedding
        for block in self.blocks:
            tokens = block(tokens)
        return [adapter(tokens, self.token_grid) for adapter in self.adapters]
