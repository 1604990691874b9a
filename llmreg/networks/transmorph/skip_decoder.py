"""TransMorph's decoder, which MambaMorph shares."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from llmreg.networks.layers import ConvBlock, FieldHead

_FINEST = 16


class NormalizedConv(ConvBlock):
    """3x3x3 convolution, instance normalization without parameters, LeakyReLU(0.01)."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        super().__init__(incoming, outgoing, slope=0.01, affine=False)


class UpBlock(nn.Module):
    """Trilinear upsampling by 2, concatenation with a skip, two convolutions."""

    def __init__(self, incoming: int, skipped: int, outgoing: int) -> None:
        super().__init__()
        self.first = NormalizedConv(incoming + skipped, outgoing)
        self.second = NormalizedConv(outgoing, outgoing)

    @override
    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        finer = F.interpolate(features, scale_factor=2.0, mode="trilinear", align_corners=False)
        features = self.first(finer, skip)
        refined: Tensor = self.second(features)
        return refined


class SkipDecoder(nn.Module):
    """From the features of tokens up to a field, with skips from the tokens and, by one convolution, from the images.

    Args:
        incoming: channels of the images, or of their features at full resolution, together.
        widths: channels of the tokens at 1/4, 1/8, ... of the resolution.
    """

    def __init__(self, incoming: int, widths: Sequence[int]) -> None:
        super().__init__()
        half = widths[0] // 2
        self.full_skip = NormalizedConv(incoming, _FINEST)
        self.half_skip = NormalizedConv(incoming, half)
        outgoing = [*reversed(widths[:-1]), half, _FINEST]
        before = [widths[-1], *outgoing]
        self.blocks = nn.ModuleList(UpBlock(a, b, b) for a, b in zip(before, outgoing, strict=False))
        self.head = FieldHead(_FINEST)

    def forward(self, images: Tensor, pyramid: Sequence[Tensor]) -> Tensor:
        """The field (B, 3, z, y, x), float32.

        Args:
            images: (B, incoming, z, y, x).
            pyramid: (B, width, z / 4, y / 4, x / 4) and so on, finest first.
        """
        # A mean of 3 x 3 x 3 voxels, as published, whose border counts zeros in.
        half = F.avg_pool3d(images, 3, stride=2, padding=1)
        skips = [self.full_skip(images), self.half_skip(half), *pyramid[:-1]]
        features = pyramid[-1]
        for block in self.blocks:
            features = block(features, skips.pop())
        flow: Tensor = self.head(features)
        return flow
