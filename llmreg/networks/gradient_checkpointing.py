"""Less memory for a second computation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Any], *inputs: Any, when: bool = True) -> Any:
    """``function(*inputs)``; ``when`` asked for, only the inputs are kept and the backward pass computes it again."""
    if not when:
        return function(*inputs)
    # Nothing that is computed twice is random, so no random state needs to be put back.
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
