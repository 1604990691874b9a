"""What training minimises: Dice where structures are known, similarity of the images, smoothness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from llmreg.geometry import warping
from llmreg.preprocessing.plans import Loss
from llmreg.training.losses import gradient_l2, soft_dice
from llmreg.training.similarity import similarity_loss


@dataclass(frozen=True, eq=False)
class Terms:
    """The parts of the loss, each a scalar; None where its weight is 0, or no structure is known.

    Attributes:
        dice: one minus soft Dice.
        similarity: the image term.
        smoothness: of the network's own field.
    """

    dice: Tensor | None
    similarity: Tensor | None
    smoothness: Tensor

    def total(self, weights: Loss) -> Tensor:
        """Their weighted sum."""
        whole = weights.smoothness * self.smoothness
        for weight, term in ((weights.dice, self.dice), (weights.similarity, self.similarity)):
            whole = whole if term is None else whole + weight * term
        return whole


def terms(batch: Mapping[str, Tensor], flow: Tensor, full: Tensor, weights: Loss, downsampling: int) -> Terms:
    """The terms of a batch.

    What lies outside the fixed image's field of view, or looks outside the moving image's, counts in neither Dice nor
    similarity: nothing is known there.

    Args:
        batch: as :func:`llmreg.training.pairs.as_tensors` makes it, with a batch axis.
        flow: the network's displacement, (B, 3, z, y, x), voxels of its own grid.
        full: the same on the images' grid.
        weights: terms of weight 0 are not computed.
        downsampling: from the images' grid to the network's.
    """
    dice = similarity = None
    if weights.dice and batch["labels"].numel():
        counted = seen_by_both(batch["fixed_seen"], batch["moving_seen"], full)
        dice, _ = soft_dice(batch["moving_labels"], batch["fixed_labels"], full, batch["labels"].view(-1), counted)
    if weights.similarity:
        # At the network's resolution: a fraction of the voxels, and what the network saw.
        images, seen = (
            [reduce(batch[f"{role}{what}"], downsampling) for role in ("fixed", "moving")]
            for what, reduce in (("", _smaller_image), ("_seen", _smaller_mask))
        )
        warped = warping.warp(images[1], flow)
        mask = seen_by_both(seen[0], seen[1], flow)
        similarity = similarity_loss(weights.similarity_kind, warped, images[0].float(), mask[:, None])
    return Terms(dice, similarity, gradient_l2(flow))


@torch.no_grad()
def seen_by_both(fixed_seen: Tensor, moving_seen: Tensor, flow: Tensor) -> Tensor:
    """Where a fixed voxel lies in its image's field of view and looks into the moving image's; bool (B, z, y, x)."""
    looked_up = warping.warp(moving_seen[:, None].float(), flow, mode="nearest")[:, 0]
    return (looked_up > 0.5) & (fixed_seen > 0)


def _smaller_image(image: Tensor, factor: int) -> Tensor:
    return warping.downsample_image(image, factor) if factor > 1 else image


def _smaller_mask(seen: Tensor, factor: int) -> Tensor:
    """A block is seen where all its voxels are."""
    return 1 - functional.max_pool3d(1 - seen[:, None].float(), factor)[:, 0] if factor > 1 else seen
