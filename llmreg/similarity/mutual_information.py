"""Mutual information of two images."""

from __future__ import annotations

import torch
from torch import Tensor

# The usual number with ANTs.
BINS = 32
# An average of 256 per cell of the joint histogram. MONAI holds some nine arrays of samples x bins at a time, of 34 MB
# each.
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
        samples: the largest number of voxels that are looked at, always the same ones, spread evenly over the mask; the
            others get no gradient.

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
