"""A 3-D convolution that a CPU computes fast for small volumes too."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Of one sample in float32, PyTorch's CPU code takes oneDNN only above so many channels x depth x height, and a
# convolution that is five times slower below (aten/src/ATen/native/Convolution.cpp, use_mkldnn) - but oneDNN always
# where there are groups.
_ONEDNN_ABOVE = 20480


class Conv3d(nn.Conv3d):
    """``torch.nn.Conv3d`` without groups, dilation and other padding than zeros; the same sums, up to their order."""

    def __init__(
        self, incoming: int, outgoing: int, kernel: int, stride: int = 1, padding: int = 0, bias: bool = True
    ) -> None:
        super().__init__(incoming, outgoing, kernel, stride, padding, bias=bias)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, z, y, x) -> (B, C', z', y', x')."""
        if not self._too_small(image):
            return super().forward(image)
        # Two groups, each over half of the incoming channels, whose results are added.
        weight = torch.cat(self.weight.chunk(2, dim=1))
        first, second = F.conv3d(image, weight, stride=self.stride, padding=self.padding, groups=2).chunk(2, dim=1)
        summed = first + second
        return summed if self.bias is None else summed + self.bias.view(-1, 1, 1, 1)

    def over_parts(self, parts: Sequence[Tensor]) -> Tensor:
        """The convolution of the parts' concatenation along the channels, without making it or its gradient."""
        weights = self.weight.split([part.shape[1] for part in parts], dim=1)
        total = F.conv3d(parts[0], weights[0], self.bias, self.stride, self.padding)
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            total = total + F.conv3d(part, weight, None, self.stride, self.padding)
        return total

    def _too_small(self, image: Tensor) -> bool:
        return (
            image.device.type == "cpu"
            and torch.backends.mkldnn.is_available()
            and image.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and len(image) == 1
            and self.in_channels % 2 == 0
            and image[0, :, :, :, 0].numel() <= _ONEDNN_ABOVE
        )
