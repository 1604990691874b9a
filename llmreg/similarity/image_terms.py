"""How alike a warped and a fixed image of another contrast are: losses of training without labels, and MIND-SSC.

Images are (B, 1, z, y, x), intensities about [0, 1]. Everything is computed in float32 without autocast. A mask says
which voxels count, as a rule the region that both images show. Voxels outside have no influence whatever they hold,
NaN included, and no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

Kind = Literal["mind", "mutual_information", "lncc"]

# Patches of 3^3 voxels, neighbours 2 voxels away: ConvexAdam's defaults.
MIND_RADIUS = 1
MIND_DILATION = 2
# The variance of a voxel is kept within these multiples of its mean over the mask, as in ConvexAdam.
_VARIANCE_RANGE = (0.001, 1000.0)
# Of a constant image the mean variance is zero; far below that of any image, far above underflow of its square.
_VARIANCE_FLOOR = 1e-12
# Voxels whose twelve channels exist at a time: on a CPU they stay in the cache, on a GPU they need some 500 MB.
_CPU_CHUNK, _GPU_CHUNK = 1 << 16, 1 << 20

# As usual with ANTs.
MI_BINS = 32
# On average 256 a cell of the joint histogram. MONAI holds some nine arrays of samples x bins at a time, of 34 MB each.
MI_SAMPLES = 1 << 18

_GOLDEN = (5**0.5 - 1) / 2

# VoxelMorph's window.
LNCC_WIDTH = 9
# Added to variances: windows with a standard deviation below 0.3 % of the range of intensities are noise or flat.
_LNCC_VARIANCE_FLOOR = 1e-5


def similarity_loss(kind: Kind, warped: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return how unlike the images are, lower is better; no kind needs the contrasts to be the same.

    * ``mind``: mean squared difference of :func:`mind_ssc`, over the channels and the voxels of the mask; 0 to 1.
    * ``mutual_information``: minus the mutual information in nats of the voxels of the mask (MONAI's
      ``GlobalMutualInformationLoss``); minus log(32) to 0. Both images get Gaussian Parzen windows of half a bin's
      width; the B-spline windows would divide by the range of the image, which may be 0, and put the fixed image into
      hard bins. Intensities beyond [0, 1] count as 0 or 1. Of more than ``MI_SAMPLES`` voxels so many are taken, always
      the same, spread evenly over the mask; the others get no gradient.
    * ``lncc``: minus the mean over the mask of the squared normalised cross-correlation in the window of ``LNCC_WIDTH``
      voxels a side around each voxel; -1 to 0. Of a window only the voxels in the mask and in the image count.

    A batch is averaged over its samples whose mask is not empty; with none the loss is zero, and so is its gradient.

    Args:
        kind: the measure.
        warped: (B, 1, z, y, x) the warped moving image.
        fixed: (B, 1, z, y, x).
        mask: (B, 1, z, y, x) bool, the voxels that count; all by default.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: when the kind is unknown, shapes are not as above, or the mask is not bool.
    """
    if kind not in _MEASURES:
        raise ValueError(f"kind must be one of {', '.join(_MEASURES)}, got {kind!r}")
    _check_image("warped", warped)
    if fixed.shape != warped.shape:
        raise ValueError(f"fixed must have warped's shape {tuple(warped.shape)}, got {tuple(fixed.shape)}")
    mask = _checked_mask(mask, warped)
    with torch.autocast(warped.device.type, enabled=False):
        # Not a product: it would let NaN through.
        warped, fixed = (torch.where(mask, image.float(), 0.0) for image in (warped, fixed))
        per_sample = _MEASURES[kind](warped, fixed, mask)
        return per_sample.sum() / mask.flatten(1).any(dim=1).sum().clamp(min=1)


def mind_ssc(
    image: Tensor, radius: int = MIND_RADIUS, dilation: int = MIND_DILATION, mask: Tensor | None = None
) -> Tensor:
    """Return the self-similarity context of each voxel, twelve numbers in (0, 1].

    Heinrich et al., "Towards Realtime Multimodal Fusion for Image-Guided Interventions Using Self-similarities", MICCAI
    2013. Around a voxel, the patches at its six neighbours are compared with each other: for the twelve pairs that do
    not lie opposite, D is the mean squared difference of the two patches. The descriptor is exp(-(D - min D) / V) with
    the minimum over the twelve, and V the mean of D - min D over the twelve, kept within 0.001 and 1000 times the mean
    of V over the mask. These bounds count as constants in the gradient. The descriptor does not change with the
    brightness and the contrast of the image, inversion included.

    Of two patches only the pairs of voxels that both lie in the mask count; without any, D is 0. So near the border of
    the mask, too, nothing but the image inside decides. (Setting the outside to 0 in both images would lay an edge
    there, and its strength, which differs with the contrasts, would decide.)

    As in ConvexAdam (https://github.com/multimodallearning/convexAdam), but for the mask and two more things. Beyond
    its faces the image, not the map of distances, goes on with its outermost voxels. The channels are ordered by plane
    (zy, zx, yx), not as in the authors' C++.

    Args:
        image: (B, 1, z, y, x).
        radius: a patch has 2 * radius + 1 voxels a side.
        dilation: from a voxel to its neighbours, in voxels.
        mask: (B, 1, z, y, x) bool, the voxels that count; all by default.

    Returns:
        (B, 12, z, y, x) float32; outside the mask without meaning.

    Raises:
        ValueError: when a shape is not as above, the mask is not bool, or the radius or the dilation is too small.
    """
    _check_image("image", image)
    if radius < 0 or dilation < 1:
        raise ValueError(f"radius must be at least 0 and dilation at least 1, got {radius} and {dilation}")
    mask = _checked_mask(mask, image)
    with torch.autocast(image.device.type, enabled=False):
        (distances,) = _distances([image.float()], mask, radius, dilation)
        return _descriptor(distances, _mean_variance(distances, mask))


def _check_image(name: str, image: Tensor) -> None:
    if image.ndim != 5 or image.shape[1] != 1:
        raise ValueError(f"{name} must be (B, 1, z, y, x), got {tuple(image.shape)}")


def _checked_mask(mask: Tensor | None, image: Tensor) -> Tensor:
    if mask is None:
        return torch.ones_like(image, dtype=torch.bool)
    if mask.shape != image.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"mask must be bool and of the image's shape {tuple(image.shape)}, got {mask.dtype} {tuple(mask.shape)}"
        )
    return mask


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the mask of each sample (B,), 0 for an empty mask."""
    return torch.where(mask, values, 0.0).flatten(1).sum(dim=1) / _count(mask)


def _count(mask: Tensor) -> Tensor:
    return mask.flatten(1).sum(dim=1).clamp(min=1)


def _mind(warped: Tensor, fixed: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of the descriptors (B,).

    The twelve channels are built from their maps of distances slab by slab, and again in the backward pass: whole,
    they and what their gradient needs take more than twice the memory and the time.
    """
    distances = _distances([warped, fixed], mask, MIND_RADIUS, MIND_DILATION)
    means = [_mean_variance(channels, mask) for channels in distances]
    total = warped.new_zeros(len(warped))
    for inside, *channels in _slabs(mask, *distances[0], *distances[1]):
        # Twenty-four views, twelve of each image.
        total = total + checkpoint(
            _squared_difference, inside, means, *channels, use_reentrant=False, preserve_rng_state=False
        )
    return total / _count(mask)


def _squared_difference(mask: Tensor, means: Sequence[Tensor], *distances: Tensor) -> Tensor:
    """Squared difference of the descriptors, averaged over channels, summed over the mask (B,)."""
    warped, fixed = _descriptor(distances[:12], means[0]), _descriptor(distances[12:], means[1])
    return torch.where(mask, (warped - fixed).square().mean(dim=1, keepdim=True), 0.0).flatten(1).sum(dim=1)


def _slabs(*volumes: Tensor) -> zip[tuple[Tensor, ...]]:
    """Cut volumes (B, 1, z, y, x) into the same slabs along z."""
    shape = volumes[0].shape
    chunk = _CPU_CHUNK if volumes[0].device.type == "cpu" else _GPU_CHUNK
    step = max(1, chunk // max(1, shape[0] * shape[3] * shape[4]))
    return zip(*(volume.split(step, dim=2) for volume in volumes), strict=True)


def _distances(images: Sequence[Tensor], mask: Tensor, radius: int, dilation: int) -> list[list[Tensor]]:
    """Return for each image the twelve distances between patches at the neighbours of a voxel, views (B, 1, z, y, x).

    In each of three planes the neighbours are the corners of a square with two pairs of parallel sides. Parallel sides
    join voxels at the same offset, so one map of distances serves both, read at two places: six maps are enough.
    """
    size = mask.shape[2:]
    inside, *padded = (
        functional.pad(volume, (radius + dilation,) * 6, mode="replicate") for volume in (mask.float(), *images)
    )
    # Where a crop begins along both axes of the plane: the ends of sides, which are read where the others have theirs.
    along, across = ((0, 0), (dilation, dilation)), ((0, dilation), (dilation, 0))
    found: list[list[Tensor]] = [[] for _ in images]
    for plane in combinations(range(3), 2):
        larger = [n + 2 * radius + (dilation if axis in plane else 0) for axis, n in enumerate(size)]
        for ends, places in ((along, across), (across, along)):
            one, other = (_crop(inside, plane, end, dilation, larger) for end in ends)
            pairs = one * other
            share = 1.0 / _box_sum(pairs, 2 * radius + 1).clamp(min=1.0)
            left_out = pairs == 0
            for image, channels in zip(padded, found, strict=True):
                one, other = (_crop(image, plane, end, dilation, larger) for end in ends)
                squares = (one - other).masked_fill(left_out, 0.0).square()
                distance = _BoxSum.apply(squares, 2 * radius + 1) * share
                channels += [_crop(distance, plane, place, 0, size) for place in places]
    return found


def _crop(volume: Tensor, plane: Sequence[int], in_plane: Sequence[int], elsewhere: int, size: Sequence[int]) -> Tensor:
    starts = [elsewhere] * 3
    starts[plane[0]], starts[plane[1]] = in_plane
    return volume[:, :, *(slice(start, start + length) for start, length in zip(starts, size, strict=True))]


@torch.no_grad()
def _mean_variance(distances: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Mean over the mask of V (B, 1, 1, 1, 1), above zero."""
    total = distances[0].new_zeros(len(mask))
    for inside, *channels in _slabs(mask, *distances):
        stacked = torch.cat(channels, dim=1)
        variance = stacked.mean(dim=1, keepdim=True) - stacked.amin(dim=1, keepdim=True)
        total += torch.where(inside, variance, 0.0).flatten(1).sum(dim=1)
    return (total / _count(mask)).clamp(min=_VARIANCE_FLOOR).view(-1, 1, 1, 1, 1)


def _descriptor(distances: Sequence[Tensor], mean_variance: Tensor) -> Tensor:
    stacked = torch.cat(list(distances), dim=1)
    excess = stacked - stacked.amin(dim=1, keepdim=True)
    low, high = (mean_variance * factor for factor in _VARIANCE_RANGE)
    variance = excess.mean(dim=1, keepdim=True).clamp(low, high)
    return torch.exp(excess * (-1.0 / variance))


def _mutual_information(warped: Tensor, fixed: Tensor, mask: Tensor) -> Tensor:
    """Minus the mutual information of the voxels in the mask (B,), in nats."""
    from monai.losses import GlobalMutualInformationLoss  # takes many seconds to import

    measure = GlobalMutualInformationLoss("gaussian", num_bins=MI_BINS)
    found = []
    for one, other, inside in zip(warped, fixed, mask, strict=True):
        voxels = _spread(inside.flatten().nonzero()[:, 0], MI_SAMPLES)
        samples = (image.flatten().index_select(0, voxels).view(1, 1, -1) for image in (one, other))
        found.append(measure(*samples) if len(voxels) else one.sum() * 0.0)
    return torch.stack(found)


def _spread(items: Tensor, limit: int) -> Tensor:
    """Return `items` or, of more than `limit`, one of each of `limit` equal stretches.

    Which one changes from stretch to stretch by the golden ratio: a fixed step could be that of rows or planes.
    """
    if len(items) <= limit:
        return items
    steps = torch.arange(limit, device=items.device)
    start, stop = steps * len(items) // limit, (steps + 1) * len(items) // limit
    return items[start + ((stop - start) * (steps.double() * _GOLDEN % 1.0)).long()]


def _lncc(warped: Tensor, fixed: Tensor, mask: Tensor) -> Tensor:
    """Minus the mean squared local correlation (B,).

    MONAI's ``LocalNormalizedCrossCorrelationLoss`` is not used. Where images are flat its float32 rounding reaches
    -300, where -1 is best. Its convolutions run in TF32 on CUDA by default, too coarse for differences of sums, and
    their backward pass takes seconds on a CPU with two threads. Its windows know no mask.
    """

    def window_sum(volume: Tensor) -> Tensor:
        return _BoxSum.apply(functional.pad(volume, (LNCC_WIDTH // 2,) * 6), LNCC_WIDTH)

    share = 1.0 / window_sum(mask.float()).clamp(min=1.0)
    mean_warped, mean_fixed = window_sum(warped) * share, window_sum(fixed) * share
    covariance = window_sum(warped * fixed) * share - mean_warped * mean_fixed
    variance_warped = window_sum(warped.square()) * share - mean_warped.square() + _LNCC_VARIANCE_FLOOR
    variance_fixed = window_sum(fixed.square()) * share - mean_fixed.square() + _LNCC_VARIANCE_FLOOR
    return -_masked_mean(covariance.square() / (variance_warped * variance_fixed), mask)


class _BoxSum(torch.autograd.Function):
    """Sum over each cube of `width` voxels a side that lies in the volume; every axis gets shorter by width - 1.

    Shifted additions, in a tenth of the time of `avg_pool3d` on a CPU and without a convolution's TF32 on a GPU.
    """

    @staticmethod
    def forward(ctx: Any, volume: Tensor, width: int) -> Tensor:
        ctx.width = width
        return _box_sum(volume, width)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _box_sum(functional.pad(gradient, (ctx.width - 1,) * 6), ctx.width), None


def _box_sum(volume: Tensor, width: int) -> Tensor:
    for axis in (2, 3, 4):
        # Sums over 1, 2, 4, ... voxels double, with a voxel more for each set digit of the width.
        total, reach = volume, 1
        for digit in f"{width:b}"[1:]:
            total, reach = _shifted_sum(total, total, axis, reach), 2 * reach
            if digit == "1":
                total, reach = _shifted_sum(total, volume, axis, reach), reach + 1
        volume = total
    return volume


def _shifted_sum(first: Tensor, second: Tensor, axis: int, shift: int) -> Tensor:
    """Return first[i] + second[i + shift] along an axis, for as long as `second` goes."""
    length = second.shape[axis] - shift
    return first.narrow(axis, 0, length) + second.narrow(axis, shift, length)


_MEASURES = {"mind": _mind, "mutual_information": _mutual_information, "lncc": _lncc}
