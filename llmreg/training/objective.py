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

    What lies outside a field of view counts in neither Dice nor similarity, as :func:`comparable` has it.

    Args:
        batch: as :func:`llmreg.training.pairs.as_tensors` makes it, with a batch axis.
        flow: the network's displacement, (B, 3, z, y, x), voxels of its own grid.
        full: the same on the images' grid.
        weights: terms of weight 0 are not computed.
        downsampling: from the images' grid to the network's.
    """
    dice = similarity = None
    if weights.dice and batch["labels"].numel():
        counted = comparable(batch["fixed_seen"], batch["moving_seen"], full)
        dice, _ = soft_dice(batch["moving_labels"], batch["fixed_labels"], full, batch["labels"].view(-1), counted)
    if weights.similarity:
        # At the network's resolution: a fraction of the voxels, and what the network saw.
        images, seen = (
            [reduce(batch[f"{role}{what}"], downsampling) for role in ("fixed", "moving")]
            for what, reduce in (("", _smaller_image), ("_seen", _smaller_mask))
        )
        warped = warping.warp(images[1], flow)
        mask = comparable(seen[0], seen[1], flow)
        similarity = similarity_loss(weights.similarity_kind, warped, images[0].float(), mask[:, None])
    return Terms(dice, similarity, gradient_l2(flow))


@torch.no_grad()
def comparable(fixed_seen: Tensor, moving_seen: Tensor, flow: Tensor) -> Tensor:
    """Where the images can be compared; bool (B, z, y, x).

    A fixed voxel counts if it lies in its image's field of view, and the moving image's is there with the displacement
    or was without it. A voxel that the field makes look out of the moving image goes on counting, as background: if it
    did not, the network would learn to look away from what does not fit.

    Args:
        fixed_seen: 1 in the field of view, (B, z, y, x).
        moving_seen: the same of the moving image.
        flow: voxels, (B, 3, z, y, x).
    """
    looked_up = warping.warp(moving_seen[:, None].float(), flow, mode="nearest")[:, 0]
    return ((looked_up > 0.5) | (moving_seen > 0)) & (fixed_seen > 0)


def _smaller_image(image: Tensor, factor: int) -> Tensor:
    return warping.downsample_image(image, factor) if factor > 1 else image


def _smaller_mask(seen: Tensor, factor: int) -> Tensor:
    """A block is seen where all its voxels are."""
    return 1 - functional.max_pool3d(1 - seen[:, None].float(), factor)[:, 0] if factor > 1 else seen
