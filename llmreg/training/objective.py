"""What training minimises: named terms, each with a weight in the plans."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from llmreg.geometry import warping
from llmreg.plans.plans import Loss
from llmreg.similarity.image_terms import similarity_loss
from llmreg.similarity.losses import folding_penalty, gradient_l2, soft_dice


@dataclass(frozen=True, eq=False)
class Predicted:
    """A batch and what the network made of it.

    Attributes:
        batch: as :func:`llmreg.training.samples.as_tensors` makes it, with a batch axis.
        flow: the network's displacement, (B, 3, z, y, x), voxels of its own grid.
        full: the same on the images' grid.
        downsampling: from the images' grid to the network's.
    """

    batch: Mapping[str, Tensor]
    flow: Tensor
    full: Tensor
    downsampling: int


def terms(predicted: Predicted, weights: Loss) -> dict[str, Tensor]:
    """The terms of a batch by name, each a scalar.

    Without those of weight 0, which are not computed, and without Dice where no structure is known. What lies outside a
    field of view counts in neither Dice nor similarity, as :func:`comparable` has it.
    """
    known = predicted.batch["labels"].numel() > 0
    asked = [name for name in TERMS if getattr(weights, name) and (name != "dice" or known)]
    return {name: TERMS[name](predicted, weights) for name in asked}


def total(found: Mapping[str, Tensor], weights: Loss) -> Tensor:
    """The weighted sum of :func:`terms`."""
    return torch.stack([getattr(weights, name) * term for name, term in found.items()]).sum()


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


def similarity(predicted: Predicted, weights: Loss) -> Tensor:
    """How unlike the images are, at the network's resolution: a fraction of the voxels, and what the network saw."""
    images, seen = (
        [reduce(predicted.batch[f"{role}{what}"], predicted.downsampling) for role in ("fixed", "moving")]
        for what, reduce in (("", _smaller_image), ("_seen", _smaller_mask))
    )
    warped = warping.warp(images[1], predicted.flow)
    mask = comparable(seen[0], seen[1], predicted.flow)
    return similarity_loss(weights.similarity_kind, warped, images[0].float(), mask[:, None])


def _dice(predicted: Predicted, weights: Loss) -> Tensor:
    batch = predicted.batch
    counted = comparable(batch["fixed_seen"], batch["moving_seen"], predicted.full)
    labels = batch["labels"].view(-1)
    return soft_dice(batch["moving_labels"], batch["fixed_labels"], predicted.full, labels, counted)[0]


def _bending(predicted: Predicted, weights: Loss) -> Tensor:
    from monai.losses import BendingEnergyLoss  # takes many seconds to import

    energy: Tensor = BendingEnergyLoss()(predicted.flow.float())
    return energy


# By the names that the weights have in the plans.
TERMS: dict[str, Callable[[Predicted, Loss], Tensor]] = {
    "dice": _dice,
    "similarity": similarity,
    "smoothness": lambda predicted, weights: gradient_l2(predicted.flow),
    "bending": _bending,
    "folding": lambda predicted, weights: folding_penalty(predicted.flow),
}


def _smaller_image(image: Tensor, factor: int) -> Tensor:
    return warping.downsample_image(image, factor) if factor > 1 else image


def _smaller_mask(seen: Tensor, factor: int) -> Tensor:
    """A block is seen where all its voxels are."""
    return 1 - functional.max_pool3d(1 - seen[:, None].float(), factor)[:, 0] if factor > 1 else seen
