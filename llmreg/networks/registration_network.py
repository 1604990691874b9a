"""What training and prediction ask of every network: its base class, and the wrapper that chooses its resolution."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from numpy.typing import NDArray
from torch import Tensor, nn

from llmreg.geometry import warping


class RegistrationNetwork(nn.Module, ABC):
    """A network that finds the displacement between two images of one shape.

    Args:
        shape: (z, y, x) of the images.
        field: ``displacement`` or ``velocity``, what the network predicts.

    Attributes:
        shape: (z, y, x).
        predicts_velocity: whether :meth:`predict_raw` is a stationary velocity and not the displacement.
        recompute: gradient checkpointing of the finest level in training: less memory for more time, and the same
            gradients up to rounding. A network ignores it where it would not lower the peak.
        llm_sha256: digest of its frozen layers, which checkpoints hold; empty where it has none.
        adaptation: a part of the names of trained tensors that adapt the frozen layers, and are of no use with others;
            empty where there are none.
        multiple: a network that takes any shape pads images with zeros, at the far end of each axis, to multiples of
            this.

    Raises:
        ValueError: the shape is not three sizes.
    """

    recompute = False
    llm_sha256 = ""
    adaptation = ""
    multiple = 1

    def __init__(self, shape: Sequence[int], field: str) -> None:
        super().__init__()
        self.shape = tuple(int(size) for size in shape)
        if len(self.shape) != 3 or min(self.shape) <= 0:
            raise ValueError(f"shape {self.shape} is not three sizes above 0")
        self.predicts_velocity = field == "velocity"

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Predict the flow that aligns ``moving`` with ``fixed``.

        Args:
            moving: (B, 1, z, y, x).
            fixed: (B, 1, z, y, x).

        Returns:
            (B, 3, z, y, x) float32, channels (x, y, z), in voxels: moving is sampled at index + flow.

        Raises:
            ValueError: the images are not of the shape the network was built for.
        """
        raw = self.predict_raw(moving, fixed)
        return warping.exponential(raw) if self.predicts_velocity else raw

    def predict_raw(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """The network's own output for the images of :meth:`forward`, a displacement or a velocity."""
        for image in (moving, fixed):
            if image.shape[1:] != (1, *self.shape):
                raise ValueError(f"images of shape (B, 1, {self.shape}) are needed, not {tuple(image.shape)}")
        z, y, x = self.shape
        padding = (0, -x % self.multiple, 0, -y % self.multiple, 0, -z % self.multiple)
        return self.predict(nn.functional.pad(moving, padding), nn.functional.pad(fixed, padding))[..., :z, :y, :x]

    @abstractmethod
    def predict(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """:meth:`predict_raw` of images that are padded already; what a network implements."""

    def merge_lora(self) -> Callable[[], None] | None:
        """Add low-rank adaptation to the weights that it adapts, for faster prediction of the same up to rounding.

        Returns:
            What undoes it; None where the network has none.
        """
        return None

    @property
    def checkpoints_gradients(self) -> bool:
        """Whether the finest level is recomputed in the backward pass of what is computed now."""
        return self.recompute and torch.is_grad_enabled()


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
        predicts_velocity: whether :meth:`predict_raw` is a stationary velocity and not a displacement.
    """

    def __init__(self, network: RegistrationNetwork, factor: int) -> None:
        super().__init__()
        self.network = network
        self.shape = tuple(size * factor for size in network.shape)
        self.predicts_velocity = network.predicts_velocity
        self._factor = factor

    def forward(self, moving: Tensor, fixed: Tensor) -> Flows:
        """Predict the displacement that aligns ``moving`` with ``fixed``, both (B, 1, z, y, x) on the grid."""
        flow: Tensor = self.network(self._reduce(moving), self._reduce(fixed))
        return Flows(flow, self._enlarge(flow))

    def predict_raw(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """What the network itself predicts, a displacement or a velocity, (B, 3, z, y, x) on the grid."""
        return self._enlarge(self.network.predict_raw(self._reduce(moving), self._reduce(fixed)))

    def zero_flows(self, images: Tensor) -> Flows:
        """Make the displacement zero for images (B, 1, z, y, x), at both resolutions."""
        return Flows(*(images.new_zeros(len(images), 3, *shape) for shape in (self.network.shape, self.shape)))

    def _reduce(self, image: Tensor) -> Tensor:
        return warping.downsample_image(image, self._factor)

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
