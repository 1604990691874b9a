"""The loss terms of this package."""

from __future__ import annotations

from torch import Tensor

from llmreg.geometry import warping
from llmreg.similarity.image_similarity import Kind, similarity_loss
from llmreg.similarity.registry import LOSS_TERMS, LossTerm, Prediction, TermSettings
from llmreg.similarity.regularity import bending_energy, folding_penalty, gradient_l2
from llmreg.similarity.soft_dice import soft_dice


class SimilaritySettings(TermSettings):
    """Parameters of the image term.

    Attributes:
        kind: the measure, see :func:`llmreg.similarity.image_similarity.similarity_loss`.
    """

    kind: Kind = "mind"


def compute_dice(prediction: Prediction, settings: TermSettings) -> Tensor:
    """Return one minus soft Dice on the images' grid, over the voxels at which the images can be compared."""
    batch, labels = prediction.batch, prediction.batch["labels"].view(-1)
    loss, _ = soft_dice(
        batch["moving_labels"], batch["fixed_labels"], prediction.full_flow, labels, prediction.comparable_full
    )
    return loss


def compute_similarity(prediction: Prediction, settings: SimilaritySettings) -> Tensor:
    """Return how unlike the images are on the network's grid, over the voxels at which they can be compared."""
    warped = warping.warp(prediction.moving, prediction.flow)
    return similarity_loss(settings.kind, warped, prediction.fixed.float(), prediction.comparable[:, None])


# The order is that of the sum, which decides its rounding.
LOSS_TERMS.register(
    "dice",
    LossTerm(
        "one minus soft Dice, over the structures annotated in both images of a pair",
        TermSettings,
        compute_dice,
        aligns_images=True,
        needs_labels=True,
    ),
)
LOSS_TERMS.register(
    "similarity",
    LossTerm(
        "how unlike the images are: mind (MIND-SSC), mutual_information or lncc",
        SimilaritySettings,
        compute_similarity,
        aligns_images=True,
        memory_gb=0.3,
        label=lambda settings: settings.kind,
    ),
)
LOSS_TERMS.register(
    "smoothness",
    LossTerm(
        "mean squared difference of neighbouring displacements, in voxels",
        TermSettings,
        lambda prediction, settings: gradient_l2(prediction.flow),
    ),
)
LOSS_TERMS.register(
    "bending",
    LossTerm(
        "bending energy, the mean squared second derivatives of the displacement (MONAI's)",
        TermSettings,
        lambda prediction, settings: bending_energy(prediction.flow),
    ),
)
LOSS_TERMS.register(
    "folding",
    LossTerm(
        "mean of what determinants of the flow's Jacobian lack to zero",
        TermSettings,
        lambda prediction, settings: folding_penalty(prediction.flow),
    ),
)
