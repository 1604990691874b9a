"""Regularity of a flow: how smooth it is, and how far it folds."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from llmreg.geometry.warping import jacobian_determinant


def gradient_l2(flow: Tensor) -> Tensor:
    """Return the mean over the three axes of the mean squared forward difference (VoxelMorph's ``Grad("l2")``).

    MONAI's ``DiffusionLoss`` is not used: its central differences ignore a field that alternates between voxels, leave
    out the border voxels, and sum over the axes.

    Args:
        flow: displacement in voxels, (B, 3, z, y, x).
    """
    flow = flow.float()
    total = flow.new_zeros(())
    for axis in (2, 3, 4):
        length = flow.shape[axis] - 1
        # One fused pass; a difference, its square and its mean take half as long again.
        total = total + functional.mse_loss(flow.narrow(axis, 1, length), flow.narrow(axis, 0, length))
    return total / 3.0


def bending_energy(flow: Tensor) -> Tensor:
    """Return the bending energy, the mean squared second derivatives (MONAI's ``BendingEnergyLoss``).

    Args:
        flow: displacement in voxels, (B, 3, z, y, x), at least 5 voxels a side.
    """
    from monai.losses.deform import BendingEnergyLoss  # The import takes many seconds.

    energy: Tensor = BendingEnergyLoss()(flow.float())
    return energy


def folding_penalty(flow: Tensor, least: float = 0.0) -> Tensor:
    """Return how far determinants of the Jacobian lie below a bound, a mean over the voxels (Mok & Chung, CVPR 2020).

    Args:
        flow: displacement in voxels, (B, 3, z, y, x).
        least: the determinant below which a voxel costs.
    """
    return functional.relu(least - jacobian_determinant(flow)).mean()
