"""Losses of two images whose contrasts may differ, for training without labels."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from llmreg.similarity.box_sums import sum_boxes
from llmreg.similarity.masks import count_voxels, full_or_checked_mask
from llmreg.similarity.mind import mind_loss

# VoxelMorph's window, in voxels.
WIDTH = 9
# This is added to variances, since windows whose standard deviation is below 0.3 % of the range of intensities are
# flat or hold noise.
VARIANCE_FLOOR = 1e-5


def local_correlation_loss(warped: Tensor, fixed: Tensor, mask: Tensor) -> Tensor:
    """Return minus the mean squared correlation in the window around each voxel of the mask, -1 to 0, lower is better.

    In a window of ``WIDTH`` voxels a side, only the voxels in the mask and in the image count.

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
    correlation = torch.where(mask, covariance.square() / (variance_warped * variance_fixed), 0.0)
    return -(correlation.flatten(1).sum(dim=1) / count_voxels(mask))


# ANTs is usually run with this number.
BINS = 32
# This gives an average of 256 samples for each cell of the joint histogram. MONAI holds some nine arrays of samples x
# bins at a time, of 34 MB each.
SAMPLES = 1 << 18

_GOLDEN_RATIO = (5**0.5 - 1) / 2


def mutual_information_loss(warped: Tensor, fixed: Tensor, mask: Tensor, samples: int = SAMPLES) -> Tensor:
    """Return minus the mutual information of the voxels in the mask, -log(32) to 0, lower is better.

    This is MONAI's ``GlobalMutualInformationLoss`` with Gaussian Parzen windows of half a bin's width for both images.
    Its B-spline windows would divide by the range of the image, which may be 0, and put the fixed image into hard bins.
    Intensities beyond [0, 1] count as 0 or 1.

    Args:
        warped: (B, 1, z, y, x) the warped moving image, intensities about [0, 1].
        fixed: (B, 1, z, y, x) the fixed image.
        mask: (B, 1, z, y, x) bool, the voxels that count.
        samples: the largest number of voxels that are used; they are always the same ones, spread evenly over the
            mask. The others get no gradient.

    Returns:
        (B,) in nats.
    """
    from monai.losses.image_dissimilarity import GlobalMutualInformationLoss  # The import takes many seconds.

    measure = GlobalMutualInformationLoss("gaussian", num_bins=BINS)
    losses = []
    for warped_sample, fixed_sample, inside in zip(warped, fixed, mask, strict=True):
        voxels = choose_evenly(inside.flatten().nonzero()[:, 0], samples)
        values = [image.flatten().index_select(0, voxels).view(1, 1, -1) for image in (warped_sample, fixed_sample)]
        losses.append(measure(*values) if len(voxels) else warped_sample.sum() * 0.0)
    return torch.stack(losses)


def choose_evenly(items: Tensor, limit: int) -> Tensor:
    """Return ``items`` or, when there are more than ``limit``, one of each of ``limit`` equal stretches.

    The position within a stretch changes from stretch to stretch by the golden ratio, because a fixed step could
    coincide with that of rows or planes.
    """
    if len(items) <= limit:
        return items
    steps = torch.arange(limit, device=items.device)
    start, stop = steps * len(items) // limit, (steps + 1) * len(items) // limit
    return items[start + ((stop - start) * (steps.double() * _GOLDEN_RATIO % 1.0)).long()]


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
            :func:`~llmreg.similarity.image_similarity.mutual_information_loss`, -log(32) to 0. ``lncc``:
            :func:`~llmreg.similarity.image_similarity.local_correlation_loss`, -1 to 0.
        warped: (B, 1, z, y, x) the warped moving image, intensities about [0, 1].
        fixed: (B, 1, z, y, x) the fixed image.
        mask: (B, 1, z, y, x) bool, the voxels that count, as a rule the region that both images show; all by default.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: when shapes are not as above, or the mask is not bool.
    """
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
