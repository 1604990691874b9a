"""Compiling a network with torch.compile where that works."""

from __future__ import annotations

import logging
import time
from typing import cast

import torch
from torch import nn

from llmreg.devices import autocast
from llmreg.networks.resolution import GridNetwork

log = logging.getLogger(__name__)


def compile_or_keep(network: GridNetwork, device: torch.device, precision: str) -> nn.Module:
    """The compiled network, which shares the network's parameters; the network itself where compiling fails.

    It is tried here, forward and backward, so that a training does not fail later. A failure is logged.

    Args:
        network: takes (moving, fixed).
        device: where it lies.
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
