"""Building a network from its settings, and the part of it that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from llmreg.devices import has_bfloat16
from llmreg.errors import UserError
from llmreg.network.config import NetworkSettings
from llmreg.network.llm.loading import build_layers, find_layers
from llmreg.network.llm_morph import LLMMorph
from llmreg.paths import llm_cache_folder

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def build_network(
    settings: NetworkSettings, shape: Sequence[int], device: torch.device | None = None, recompute: bool = False
) -> LLMMorph:
    """Build the network for images of one shape, with pretrained frozen layers where it has some.

    Args:
        settings: the network's settings.
        shape: (z, y, x), each a multiple of 16.
        device: where it is put; the CPU when None.
        recompute: see :class:`LLMMorph`.

    Raises:
        UserError: the language model is missing, unreadable, another than the settings' ``sha256`` says, or cannot be
            run as they say.
        ValueError: the shape is not a multiple of 16.
    """
    device = device or torch.device("cpu")
    loaded, sha256 = None, ""
    if settings.blocks == "llm":
        stored = find_layers(settings.llm, llm_cache_folder())
        # Looked up or read: not every find_layers has to hash them.
        sha256 = settings.llm.sha256 or stored.sha256
        # Without hardware for bfloat16: the same numbers, held in what it computes in.
        emulated = settings.llm.dtype == "bfloat16" and not has_bfloat16(device)
        loaded = build_layers(stored, DTYPES[settings.llm.dtype], torch.float32 if emulated else None)
    network = LLMMorph(settings, shape, loaded, sha256)
    network.recompute = recompute
    if device.type == "cpu" and not has_bfloat16(device):
        # Measured: gradients of convolutions take less time so, in float32 (documentation/performance.md).
        nn.utils.convert_conv3d_weight_memory_format(network, torch.channels_last_3d)
    return network.to(device)


def trainable_state(network: nn.Module) -> dict[str, Tensor]:
    """What training changes: trainable parameters and persistent buffers, without the frozen language model."""
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in network.state_dict().items() if name not in frozen}


def load_trainable_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back what :func:`trainable_state` gave.

    Raises:
        UserError: a tensor is missing, unknown or of another shape; the network is then unchanged.
    """
    own = trainable_state(network)
    for name in sorted(own.keys() ^ state.keys()):
        where = "lacks" if name in own else "has an unknown"
        raise UserError(f"the checkpoint does not fit this plan's network (it {where} {name}); use its own plan.")
    for name, value in own.items():
        if value.shape != state[name].shape:
            raise UserError(
                f"the checkpoint does not fit this plan's network ({name} is {tuple(state[name].shape)}, not "
                f"{tuple(value.shape)}); use its own plan."
            )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name])
