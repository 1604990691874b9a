"""Local normalised cross-correlation of two images."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from llmreg.similarity.box_sums import sum_boxes
from llmreg.similarity.masks import masked_mean

# VoxelMorph's window, in voxels.
WIDTH = 9
# It is added to variances: windows with a standard deviation below 0.3 % of the range of intensities are noise or flat.
VARIANCE_FLOOR = 1e-5


def local_correlation_loss(warped: Tensor, fixed: Tensor, mask: Tensor) -> Tensor:
    """Return minus the mean squared correlation in the window around each voxel of the mask, -1 to 0, lower is better.

    Of a window of ``WIDTH`` voxels a side, only the voxels in the mask and in the image count.

    MONAI's ``LocalNormalizedCrossCorrelationLoss`` is not used. Where images are flat its float32 rounding reaches
    -300, where -1 is best. Its convolutions run in TF32 on CUDA by default, too coarse for differences of sums, and
    their backward pass takes seconds on a CPU with two threads. Its windows know no mask.

    Args:
        warped: (B, 1, z, y, x) the warped moving image, 0 outside the mask.
        fixed: (B, 1, z, y, x) the fixed image, 0 outside the mask.
        mask: (B, 1, z, y, x) bool, the voxels that count.

    Returns:
        (B,).
    """

    def sum_windows(volume: Tensor) -> Tensor:
        return sum_boxes(functional.pad(volume, (WIDTH // 2,) * 6), WIDTH)

    share = 1.0 / sum_windows(mask.float()).clamp(min=1.0)
    mean_warped, mean_fixed = sum_windows(warped) * share, sum_windows(fixed) * share
    covariance = sum_windows(warped * fixed) * share - mean_warped * mean_fixed
    variance_warped = sum_windows(warped.square()) * share - mean_warped.square() + VARIANCE_FLOOR
    variance_fixed = sum_windows(fixed.square()) * share - mean_fixed.square() + VARIANCE_FLOOR
    return -masked_mean(covariance.square() / (variance_warped * variance_fixed), mask)
