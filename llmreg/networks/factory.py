"""Building a network from its settings, and the part of it that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from llmreg.devices import has_bfloat16
from llmreg.errors import UserError
from llmreg.networks.config import (
    DualPyramidSettings,
    LLMMorphSettings,
    MambaMorphSettings,
    NetworkSettings,
    TransMorphSettings,
    VoxelMorphSettings,
    language_model,
)
from llmreg.networks.language_models.loading import build_layers, find_layers
from llmreg.networks.llm_morph.network import LLMMorph
from llmreg.networks.registration_network import RegistrationNetwork
from llmreg.paths import llm_cache_folder

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def build_network(
    settings: NetworkSettings, shape: Sequence[int], device: torch.device | None = None, recompute: bool = False
) -> RegistrationNetwork:
    """Build the network for images of one shape, with pretrained frozen layers where it has some.

    Args:
        settings: the network's settings.
        shape: (z, y, x), for LLM-Morph each a multiple of 16.
        device: where it is put; the CPU when None.
        recompute: see :class:`RegistrationNetwork`.

    Raises:
        UserError: the language model is missing, unreadable, another than the settings' ``sha256`` says, or cannot be
            run as they say.
        ValueError: the shape is not three sizes, or for LLM-Morph not a multiple of 16.
    """
    device = device or torch.device("cpu")
    network = _llm_morph(settings, shape, device) if settings.name == "llm_morph" else _baseline(settings, shape)
    network.recompute = recompute
    if device.type == "cpu" and not has_bfloat16(device):
        # Measured: gradients of convolutions take less time so, in float32 (documentation/performance.md).
        nn.utils.convert_conv3d_weight_memory_format(network, torch.channels_last_3d)
    return network.to(device)


def _llm_morph(settings: LLMMorphSettings, shape: Sequence[int], device: torch.device) -> LLMMorph:
    llm = language_model(settings)
    if llm is None:
        return LLMMorph(settings, shape, None)
    stored = find_layers(llm, llm_cache_folder())
    # Without hardware for bfloat16: the same numbers, held in what it computes in.
    emulated = llm.dtype == "bfloat16" and not has_bfloat16(device)
    loaded = build_layers(stored, DTYPES[llm.dtype], torch.float32 if emulated else None)
    # Looked up or read: not every find_layers has to hash them.
    return LLMMorph(settings, shape, loaded, llm.sha256 or stored.sha256)


def _baseline(
    settings: VoxelMorphSettings | TransMorphSettings | MambaMorphSettings | DualPyramidSettings, shape: Sequence[int]
) -> RegistrationNetwork:
    # Inside, since MONAI takes seconds to import, which LLM-Morph need not wait for.
    match settings:
        case VoxelMorphSettings():
            from llmreg.networks.voxelmorph.network import VoxelMorph

            return VoxelMorph(settings, shape)
        case TransMorphSettings():
            from llmreg.networks.transmorph.network import TransMorph

            return TransMorph(settings, shape)
        case MambaMorphSettings():
            from llmreg.networks.mambamorph.network import MambaMorph

            return MambaMorph(settings, shape)
        case DualPyramidSettings():
            from llmreg.networks.dual_pyramid.network import DualPyramid

            return DualPyramid(settings, shape)


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
