"""Gradient checkpointing: less memory for a second forward computation in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.checkpoint import checkpoint


def call_with_checkpointing(function: Callable[..., Any], *inputs: Any, when: bool = True) -> Any:
    """Call ``function(*inputs)``; with ``when``, only the inputs are kept and the backward pass calls it again."""
    if not when:
        return function(*inputs)
    # Nothing in these functions is random, so no random state needs to be restored.
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
