"""torch.compile where it works."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from llmreg.devices import autocast

log = logging.getLogger(__name__)


def compiled(network: nn.Module, shape: Sequence[int], device: torch.device, precision: str) -> nn.Module:
    """The network, compiled; itself where that fails, and the log says why.

    It is tried here, forward and backward, so that nothing fails later. The parameters are the same ones.

    Args:
        network: takes (moving, fixed).
        shape: (z, y, x) of its images.
        device: where it lies.
        precision: what training computes in, ``bfloat16`` or ``none``.
    """
    start = time.monotonic()
    try:
        faster = cast(nn.Module, torch.compile(network, dynamic=False))
        image = torch.zeros(1, 1, *shape, device=device)
        with autocast(device, precision):
            flow = faster(image, image)
        flow.sum().backward()
    # Whatever a compiler, a driver or PyTorch's own tracing may meet.
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        log.warning("The network cannot be compiled here (%s): it runs as it is.", reason)
        return network
    finally:
        network.zero_grad(set_to_none=True)
    log.info("The network was compiled in %.0f s.", time.monotonic() - start)
    return faster
