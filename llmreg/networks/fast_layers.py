"""Layers of PyTorch, the same up to rounding, that are faster on a CPU or need less memory, and gradient checkpointing.

Everything that is done for speed or memory alone is in this module, so that networks are read without it.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llmreg.devices import has_bfloat16

# For a single sample in float32, PyTorch on a CPU uses oneDNN only where channels x depth x height exceed this number,
# and otherwise a convolution that is five times slower (aten/src/ATen/native/Convolution.cpp, use_mkldnn). With groups
# it always uses oneDNN.
_ONEDNN_ABOVE = 20480

T = TypeVar("T")


class Conv3d(nn.Conv3d):
    """``torch.nn.Conv3d`` without groups, dilation and other padding than zeros, fast for small volumes too."""

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, z, y, x) -> (B, C', z', y', x')."""
        if not self._is_slow(image):
            return super().forward(image)
        # The convolution is split into two groups over half of the incoming channels each, and their results are added.
        weight = torch.cat(self.weight.chunk(2, dim=1))
        first, second = nn.functional.conv3d(image, weight, stride=self.stride, padding=self.padding, groups=2).chunk(
            2, dim=1
        )
        summed = first + second
        return summed if self.bias is None else summed + self.bias.view(-1, 1, 1, 1)

    def sum_over(self, parts: Sequence[Tensor]) -> Tensor:
        """The convolution of the parts' concatenation along the channels, without memory for it or its gradient."""
        weights = self.weight.split([part.shape[1] for part in parts], dim=1)
        total = nn.functional.conv3d(parts[0], weights[0], self.bias, self.stride, self.padding)
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            total = total + nn.functional.conv3d(part, weight, None, self.stride, self.padding)
        return total

    def _is_slow(self, image: Tensor) -> bool:
        return (
            image.device.type == "cpu"
            and torch.backends.mkldnn.is_available()
            and image.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and len(image) == 1
            and self.in_channels % 2 == 0
            and image[0, :, :, :, 0].numel() <= _ONEDNN_ABOVE
        )


class InstanceNorm3d(nn.InstanceNorm3d):
    """``torch.nn.InstanceNorm3d`` without running statistics."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, z, y, x) -> the same."""
        # Group normalisation with a group for each channel gives the same in half the time on a CPU. On CUDA it is not
        # used, because autocast turns its result into float32.
        if features.device.type == "cpu":
            return nn.functional.group_norm(features, self.num_features, self.weight, self.bias, self.eps)
        return super().forward(features)


def choose_memory_format(network: nn.Module, device: torch.device) -> None:
    """Lay out the weights of convolutions as a device computes fastest with them."""
    if device.type == "cpu" and not has_bfloat16(device):
        # Gradients of convolutions in float32 were measured to take less time so (documentation/performance.md).
        nn.utils.convert_conv3d_weight_memory_format(network, torch.channels_last_3d)


def call_with_checkpointing(function: Callable[..., T], *inputs: Any, when: bool = True) -> T:
    """Call ``function(*inputs)``; with ``when``, only the inputs are kept and the backward pass calls it again.

    This is gradient checkpointing: less memory for a second forward computation.
    """
    if not when:
        return function(*inputs)
    # Nothing in these functions is random, so no random state needs to be restored.
    return cast(T, checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False))
