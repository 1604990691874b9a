"""Fitting volumes of the common frame to the size that a configuration's network takes."""

from __future__ import annotations

from typing import Any

from acvl_utils.cropping_and_padding.padding import pad_nd_image
from numpy.typing import NDArray

from llmreg.plans.plans import Configuration


def pad(array: NDArray[Any], configuration: Configuration) -> tuple[NDArray[Any], tuple[slice, ...]]:
    """Pad (z, y, x) with zeros to the configuration's padded size.

    Returns:
        The padded array and the slices that cut the original out of it.
    """
    padded, back = pad_nd_image(array, configuration.padded_size[::-1], "constant", {"constant_values": 0}, True)
    return padded, tuple(back)
