"""Resolution: a network that works on the grid of its images, or on one that is coarser by a whole factor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from acvl_utils.cropping_and_padding.padding import pad_nd_image
from numpy.typing import NDArray
from torch import Tensor, nn

from llmreg.geometry import warping
from llmreg.networks.registration_network import RegistrationNetwork


class Flows(NamedTuple):
    """A displacement at two resolutions, channels (x, y, z).

    Attributes:
        flow: of the network, (B, 3, z, y, x), in voxels of the network's own grid.
        full: the same on the images' grid, in voxels of that grid.
    """

    flow: Tensor
    full: Tensor


class GridNetwork(nn.Module):
    """A network that takes images on a grid and works at the full resolution of it, or at a coarser one.

    Args:
        network: registers images of the coarser grid.
        factor: how many voxels of the grid one of the network's voxels spans along each axis.

    Attributes:
        network: as given; checkpoints hold its state, not that of the wrapper.
        shape: (z, y, x) of the images on the grid.
        velocity: whether :meth:`raw` is a stationary velocity and not a displacement.
    """

    def __init__(self, network: RegistrationNetwork, factor: int) -> None:
        super().__init__()
        self.network = network
        self.shape = tuple(size * factor for size in network.shape)
        self.velocity = network.velocity
        self._factor = factor

    def forward(self, moving: Tensor, fixed: Tensor) -> Flows:
        """Predict the displacement that aligns ``moving`` with ``fixed``, both (B, 1, z, y, x) on the grid."""
        flow: Tensor = self.network(self._reduce(moving), self._reduce(fixed))
        return Flows(flow, self._enlarge(flow))

    def raw(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """What the network itself predicts, a displacement or a velocity, (B, 3, z, y, x) on the grid."""
        return self._enlarge(self.network.raw(self._reduce(moving), self._reduce(fixed)))

    def zero_flows(self, images: Tensor) -> Flows:
        """Make the displacement zero for images (B, 1, z, y, x), at both resolutions."""
        full = images.new_zeros(len(images), 3, *self.shape)
        return Flows(full.new_zeros(len(images), 3, *self.network.shape), full)

    def _reduce(self, image: Tensor) -> Tensor:
        return warping.downsample_image(image, self._factor) if self._factor > 1 else image

    def _enlarge(self, flow: Tensor) -> Tensor:
        return warping.upsample(flow, self._factor) if self._factor > 1 else flow


def pad_to_shape(array: NDArray[Any], shape: Sequence[int]) -> tuple[NDArray[Any], tuple[slice, ...]]:
    """Pad an array with zeros on all sides, to the shape that a :class:`GridNetwork` takes.

    Args:
        array: (z, y, x).
        shape: (z, y, x), nowhere smaller.

    Returns:
        The padded array, and the slices that cut the original out of it.
    """
    padded, crop = pad_nd_image(array, tuple(shape), "constant", {"constant_values": 0}, return_slicer=True)
    return padded, tuple(crop)
