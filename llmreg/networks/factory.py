"""Building a network from its settings, and the part of it that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from llmreg.errors import UserError
from llmreg.networks.fast_layers import choose_memory_format
from llmreg.networks.registration_network import RegistrationNetwork
from llmreg.networks.registry import NetworkSettings, plugin_of


def build_network(
    settings: NetworkSettings, shape: Sequence[int], device: torch.device | None = None, *, recompute: bool = False
) -> RegistrationNetwork:
    """Build the network for images of one shape, with pretrained frozen layers where it has some.

    Args:
        settings: the network's settings.
        shape: (z, y, x), each a multiple of the network's stride.
        device: where it is put; the CPU when None.
        recompute: see :class:`RegistrationNetwork`.

    Raises:
        UserError: the language model is missing, unreadable, another than the settings' ``sha256`` says, or cannot be
            run as they say.
        ValueError: the shape is not three sizes, or not a multiple of the stride.
    """
    device = device or torch.device("cpu")
    network = plugin_of(settings).build(settings, shape, device)
    network.recompute = recompute
    choose_memory_format(network, device)
    return network.to(device)


def trainable_state(network: nn.Module) -> dict[str, Tensor]:
    """The tensors that training changes: trained parameters and persistent buffers, without frozen weights."""
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in network.state_dict().items() if name not in frozen}


def load_trainable_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy the tensors of :func:`trainable_state` into a network.

    Raises:
        UserError: a tensor is missing, unknown or of another shape; the network is then unchanged.
    """
    current = trainable_state(network)
    for name in sorted(current.keys() ^ state.keys()):
        problem = "lacks" if name in current else "has an unknown"
        raise UserError(f"the checkpoint does not fit this plan's network (it {problem} {name}); use its own plan.")
    for name, value in current.items():
        if value.shape != state[name].shape:
            raise UserError(
                f"the checkpoint does not fit this plan's network ({name} is {tuple(state[name].shape)}, not "
                f"{tuple(value.shape)}); use its own plan."
            )
    with torch.no_grad():
        for name, value in current.items():
            value.copy_(state[name])
