"""The base class of networks: what training and prediction ask of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmreg.geometry import warping


class RegistrationNetwork(nn.Module, ABC):
    """A network that finds the displacement between two images of one shape.

    Args:
        shape: (z, y, x) of the images.
        field: ``displacement`` or ``velocity``, what the network predicts.

    Attributes:
        shape: (z, y, x).
        velocity: whether :meth:`raw` is a stationary velocity and not the displacement.
        recompute: gradient checkpointing of the finest level in training: less memory for more time, and the same
            gradients up to rounding. A network ignores it where it would not lower the peak.
        llm_sha256: digest of its frozen layers, which checkpoints hold; empty where it has none.
        multiple: a network that takes any shape pads images with zeros, at the far end of each axis, to multiples of
            this.

    Raises:
        ValueError: the shape is not three sizes.
    """

    recompute = False
    llm_sha256 = ""
    multiple = 1

    def __init__(self, shape: Sequence[int], field: str) -> None:
        super().__init__()
        self.shape = tuple(int(size) for size in shape)
        if len(self.shape) != 3 or min(self.shape) <= 0:
            raise ValueError(f"shape {self.shape} is not three sizes above 0")
        self.velocity = field == "velocity"

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
        raw = self.raw(moving, fixed)
        return warping.exponential(raw) if self.velocity else raw

    def raw(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """The network's own output for the images of :meth:`forward`, a displacement or a velocity."""
        for image in (moving, fixed):
            if image.ndim != 5 or image.shape[1] != 1 or tuple(image.shape[2:]) != self.shape:
                raise ValueError(f"images of shape (B, 1, {self.shape}) are needed, not {tuple(image.shape)}")
        z, y, x = self.shape
        missing = [-size % self.multiple for size in self.shape]
        if not any(missing):
            return self.predict(moving, fixed)
        padding = (0, missing[2], 0, missing[1], 0, missing[0])
        return self.predict(F.pad(moving, padding), F.pad(fixed, padding))[..., :z, :y, :x]

    @abstractmethod
    def predict(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """:meth:`raw` of images that are padded already; what a network implements."""

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
