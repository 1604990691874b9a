"""The hierarchical encoder of TransMorph and MambaMorph: tokens of 4 x 4 x 4 voxels, merged from stage to stage."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.blocks import PatchEmbed
from monai.networks.nets.swin_unetr import PatchMergingV2
from torch import Tensor, nn

from llmreg.networks.transmorph.positions import sinusoidal_positions

PATCH = 4
WIDTH = 96


class TokenPyramid(nn.Module):
    """Patch embedding, then stages with patch merging in between; each stage's result is normalised on its way out.

    Args:
        incoming: channels of the images together.
        stages: modules (B, d, h, w, C) -> the same, with C twice that of the one before, from 96.
        positions: whether to add a sinusoidal encoding of the tokens' places.
    """

    def __init__(self, incoming: int, stages: Sequence[nn.Module], *, positions: bool = False) -> None:
        super().__init__()
        self.positions = positions
        self.embedding = PatchEmbed(PATCH, incoming, WIDTH, nn.LayerNorm, spatial_dims=3)
        self.stages = nn.ModuleList(stages)
        widths = stage_widths(len(stages))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.merges = nn.ModuleList(PatchMergingV2(width) for width in widths[:-1])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features (B, 96, z / 4, y / 4, x / 4), (B, 192, z / 8, ...) and so on, finest first."""
        embedded = self.embedding(images)
        if self.positions:
            embedded = embedded + sinusoidal_positions(embedded.shape[2:], WIDTH, embedded.device)
        tokens = embedded.movedim(1, -1)
        pyramid: list[Tensor] = []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            if pyramid:
                tokens = self.merges[len(pyramid) - 1](tokens)
            tokens = stage(tokens)
            pyramid.append(norm(tokens).movedim(-1, 1))
        return pyramid


def stage_widths(stages: int) -> list[int]:
    """Channels of the stages' tokens."""
    return [WIDTH * 2**stage for stage in range(stages)]
