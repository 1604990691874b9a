"""The loss terms of this package, among them those that keep a flow regular."""

from torch import Tensor
from torch.nn import functional

from llmreg.geometry import warping
from llmreg.geometry.warping import jacobian_determinant
from llmreg.similarity.image_similarity import Kind, similarity_loss
from llmreg.similarity.soft_dice import soft_dice
from llmreg.similarity.term_registry import LOSS_TERMS, LossInputs, LossTerm, TermSettings


def gradient_l2(flow: Tensor) -> Tensor:
    """Return the mean over the three axes of the mean squared forward difference (VoxelMorph's ``Grad("l2")``).

    MONAI's ``DiffusionLoss`` is not used: its central differences ignore a flow that alternates between voxels, leave
    out the border voxels, and sum over the axes.

    Args:
        flow: displacement in voxels, (B, 3, z, y, x).
    """
    flow = flow.float()
    # One fused pass for each axis; a difference, its square and its mean take half as long again.
    means = [
        functional.mse_loss(flow.narrow(axis, 1, flow.shape[axis] - 1), flow.narrow(axis, 0, flow.shape[axis] - 1))
        for axis in (2, 3, 4)
    ]
    return (means[0] + means[1] + means[2]) / 3.0


def bending_energy(flow: Tensor) -> Tensor:
    """Return the bending energy, the mean squared second derivatives (MONAI's ``BendingEnergyLoss``).

    Args:
        flow: displacement in voxels, (B, 3, z, y, x), at least 5 voxels a side.
    """
    from monai.losses.deform import BendingEnergyLoss  # The import takes many seconds.

    return BendingEnergyLoss()(flow.float())  # type: ignore[no-any-return]


def folding_penalty(flow: Tensor, least: float = 0.0) -> Tensor:
    """Return how far determinants of the Jacobian lie below a bound, a mean over the voxels (Mok & Chung, CVPR 2020).

    Args:
        flow: displacement in voxels, (B, 3, z, y, x).
        least: the determinant below which a voxel costs.
    """
    return functional.relu(least - jacobian_determinant(flow)).mean()


class SimilaritySettings(TermSettings):
    """Parameters of the image term.

    Attributes:
        kind: the measure, see :func:`llmreg.similarity.image_similarity.similarity_loss`.
    """

    kind: Kind = "mind"


def compute_dice(prediction: LossInputs, settings: TermSettings) -> Tensor:
    """Return one minus soft Dice on the images' grid, over the voxels at which the images can be compared."""
    batch = prediction.batch
    return soft_dice(
        batch["moving_labels"],
        batch["fixed_labels"],
        prediction.full_flow,
        batch["labels"].view(-1),
        prediction.comparable_full,
    )[0]


def compute_similarity(prediction: LossInputs, settings: SimilaritySettings) -> Tensor:
    """Return how unlike the images are on the network's grid, over the voxels at which they can be compared."""
    return similarity_loss(
        settings.kind,
        warping.warp(prediction.moving, prediction.flow),
        prediction.fixed.float(),
        prediction.comparable[:, None],
    )


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
        "mean over the voxels of how far the determinant of the flow's Jacobian lies below zero",
        TermSettings,
        lambda prediction, settings: folding_penalty(prediction.flow),
    ),
)
