"""LLM-Morph: deformable registration of two images with frozen language-model layers at the bottom."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llmreg.network.adapters import StageAdapter
from llmreg.network.config import NetworkSettings
from llmreg.network.decoder import Decoder
from llmreg.network.encoder import Encoder
from llmreg.network.llm.loading import LoadedLayers
from llmreg.network.llm_encoding_block import LLMEncodingBlock

DOWNSAMPLING = 16
_TOKEN_HIDDEN = 64  # times the width: 1024 at the paper's width of 16


class LLMMorph(nn.Module):
    """Dual encoders, two language-model encoding blocks, adapters and a coarse-to-fine decoder.

    Args:
        settings: the network's settings.
        shape: (z, y, x) of the images, each a multiple of 16.
        loaded: the frozen decoder layers of the two blocks.

    Raises:
        ValueError: the shape is not a multiple of 16.
    """

    def __init__(self, settings: NetworkSettings, shape: Sequence[int], loaded: LoadedLayers) -> None:
        super().__init__()
        self.shape = tuple(int(size) for size in shape)
        if len(self.shape) != 3 or any(size <= 0 or size % DOWNSAMPLING for size in self.shape):
            raise ValueError(f"shape {self.shape} is not three multiples of {DOWNSAMPLING}")
        d, h, w = (size // DOWNSAMPLING for size in self.shape)
        self.token_grid = (d, h, w)
        base = settings.width
        channels, hidden = 32 * base, _TOKEN_HIDDEN * base
        width = int(loaded.config.hidden_size)
        self.llm_sha256 = loaded.sha256
        self.moving_encoder = Encoder(base, settings.normalization)
        self.fixed_encoder = Encoder(base, settings.normalization)
        self.position_embedding: nn.Parameter | None = None
        if settings.position_embedding:
            self.position_embedding = nn.Parameter(torch.empty(1, d * h * w, channels))
            nn.init.normal_(self.position_embedding, std=0.02)
        self.blocks = nn.ModuleList(
            LLMEncodingBlock(incoming, hidden, layer, loaded.config, settings.llm, settings.final_norm)
            for incoming, layer in zip((channels, width), loaded.layers, strict=True)
        )
        adapters = [StageAdapter(width, base, stage, settings.reshape == "direct") for stage in (1, 2, 3, 4)]
        self.adapters = nn.ModuleList(adapters)
        self.decoder = Decoder(base, [a.channels for a in adapters], settings.normalization, settings.accumulate)

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Predict the field that aligns ``moving`` with ``fixed``.

        Args:
            moving: (B, 1, z, y, x).
            fixed: (B, 1, z, y, x).

        Returns:
            (B, 3, z, y, x) float32, channels (x, y, z), in voxels: moving is sampled at index + field.

        Raises:
            ValueError: the images are not of the shape the network was built for.
        """
        for image in (moving, fixed):
            if image.ndim != 5 or image.shape[1] != 1 or tuple(image.shape[2:]) != self.shape:
                raise ValueError(f"images of shape (B, 1, {self.shape}) are needed, not {tuple(image.shape)}")
        moving_features, fixed_features = self.moving_encoder(moving), self.fixed_encoder(fixed)
        tokens = torch.cat([moving_features[4], fixed_features[4]], dim=1).flatten(2).transpose(1, 2)
        if self.position_embedding is not None:
            tokens = tokens + self.position_embedding
        for block in self.blocks:
            tokens = block(tokens)
        adapted = [adapter(tokens, self.token_grid) for adapter in self.adapters]
        flow: Tensor = self.decoder(adapted, moving_features, fixed_features, moving)
        return flow
