"""Layers that several networks are made of."""

from functools import partial

import torch
from torch import Tensor, nn

from llmreg.networks.fast_layers import Conv3d, InstanceNorm3d

SLOPE = 0.2
# A transposed convolution that doubles the resolution.
up_convolution = partial(nn.ConvTranspose3d, kernel_size=2, stride=2)


class ConvBlock(nn.Module):
    """3x3x3 convolution, normalization, LeakyReLU.

    Args:
        incoming: channels of all inputs together.
        outgoing: channels of the output.
        normalization: ``instance`` or ``none``.
        stride: of the convolution.
        slope: of the LeakyReLU below zero.
        affine: whether the normalization has a trained scale and shift.
    """

    def __init__(
        self,
        incoming: int,
        outgoing: int,
        normalization: str = "instance",
        *,
        stride: int = 1,
        slope: float = SLOPE,
        affine: bool = True,
    ) -> None:
        super().__init__()
        normalized = normalization == "instance"
        self.conv = Conv3d(incoming, outgoing, 3, stride=stride, padding=1, bias=not normalized)
        self.norm = InstanceNorm3d(outgoing, affine=affine) if normalized else nn.Identity()
        self._slope = slope

    def forward(self, *parts: Tensor, save_memory: bool = False) -> Tensor:
        """Features (B, outgoing, z, y, x) of the parts' concatenation along the channels.

        With ``save_memory`` the concatenation is never made, which takes more time.
        """
        if save_memory:
            features = self.conv.sum_over(parts)
        else:
            features = self.conv(torch.cat(parts, dim=1) if len(parts) > 1 else parts[0])
        return nn.functional.leaky_relu(self.norm(features), self._slope, inplace=True)


class FieldHead(Conv3d):
    """3x3x3 convolution to a flow or a velocity, near zero at first; always in float32."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 3, 3, padding=1)
        nn.init.normal_(self.weight, std=1e-5)
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, z, y, x) -> (B, 3, z, y, x) float32."""
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.float())
