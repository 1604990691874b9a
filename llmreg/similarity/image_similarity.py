"""Loss of two images whose contrasts may differ, for training without labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from llmreg.similarity.local_correlation import local_correlation_loss
from llmreg.similarity.masks import full_or_checked_mask
from llmreg.similarity.mind import mind_loss
from llmreg.similarity.mutual_information import mutual_information_loss

Kind = Literal["mind", "mutual_information", "lncc"]

_MEASURES: dict[Kind, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "mind": mind_loss,
    "mutual_information": mutual_information_loss,
    "lncc": local_correlation_loss,
}


def similarity_loss(kind: Kind, warped: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return how unlike the images are, lower is better; no kind needs the contrasts to be the same.

    Everything is computed in float32 without autocast. Voxels outside the mask have no influence whatever they hold,
    NaN included, and no gradient. A batch is averaged over its samples whose mask is not empty; with none the loss is
    zero, and so is its gradient.

    Args:
        kind: the measure. ``mind``: :func:`~llmreg.similarity.mind.mind_loss`, 0 to 1. ``mutual_information``:
            :func:`~llmreg.similarity.mutual_information.mutual_information_loss`, -log(32) to 0. ``lncc``:
            :func:`~llmreg.similarity.local_correlation.local_correlation_loss`, -1 to 0.
        warped: (B, 1, z, y, x) the warped moving image, intensities about [0, 1].
        fixed: (B, 1, z, y, x) the fixed image.
        mask: (B, 1, z, y, x) bool, the voxels that count, as a rule the region that both images show; all by default.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: when the kind is unknown, shapes are not as above, or the mask is not bool.
    """
    if kind not in _MEASURES:
        raise ValueError(f"kind must be one of {', '.join(_MEASURES)}, got {kind!r}")
    if warped.ndim != 5 or warped.shape[1] != 1:
        raise ValueError(f"warped must be (B, 1, z, y, x), got {tuple(warped.shape)}")
    if fixed.shape != warped.shape:
        raise ValueError(f"fixed must have warped's shape {tuple(warped.shape)}, got {tuple(fixed.shape)}")
    mask = full_or_checked_mask(mask, warped)
    with torch.autocast(warped.device.type, enabled=False):
        # A product would let NaN through.
        warped, fixed = (torch.where(mask, image.float(), 0.0) for image in (warped, fixed))
        per_sample = _MEASURES[kind](warped, fixed, mask)
        return per_sample.sum() / mask.flatten(1).any(dim=1).sum().clamp(min=1)
