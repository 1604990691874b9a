"""Building a network from its settings, compiling it, and the part of it that a checkpoint holds."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from llmreg.devices import autocast
from llmreg.networks.fast_layers import choose_memory_format
from llmreg.networks.network_registry import NetworkSettings, plugin_of
from llmreg.networks.registration_network import GridNetwork, RegistrationNetwork

log = logging.getLogger(__name__)


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


def compile_or_keep(network: GridNetwork, device: torch.device, precision: str) -> nn.Module:
    """The compiled network, which shares the network's parameters; the network itself where compiling fails.

    It is tried here, forward and backward, so that a training does not fail later. A failure is logged.

    Args:
        network: takes (moving, fixed).
        device: the device that the network lies on.
        precision: what training computes in, ``bfloat16`` or ``none``.
    """
    start = time.monotonic()
    try:
        compiled = cast(nn.Module, torch.compile(network, dynamic=False))
        image = torch.zeros(1, 1, *network.shape, device=device)
        with autocast(device, precision):
            flow = compiled(image, image).full
        flow.sum().backward()
    # A compiler, a driver or PyTorch's own tracing may raise anything.
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        log.warning("The network cannot be compiled here (%s): it runs as it is.", reason)
        return network
    finally:
        network.zero_grad(set_to_none=True)
    log.info("The network was compiled in %.0f s.", time.monotonic() - start)
    return compiled


def trainable_state(network: nn.Module) -> dict[str, Tensor]:
    """The tensors that training changes: trained parameters and persistent buffers, without frozen weights."""
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in network.state_dict().items() if name not in frozen}


def load_trainable_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy the tensors of :func:`trainable_state` into a network.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape; the network is then unchanged.
    """
    current = trainable_state(network)
    for name in sorted(current.keys() ^ state.keys()):
        raise ValueError(f"it {'lacks' if name in current else 'has the unknown'} tensor {name}")
    for name, value in current.items():
        if value.shape != state[name].shape:
            raise ValueError(f"{name} has the shape {tuple(state[name].shape)}, not {tuple(value.shape)}")
    network.load_state_dict(state, strict=False)
