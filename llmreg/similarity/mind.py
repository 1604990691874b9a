"""MIND-SSC: a descriptor of each voxel's neighbourhood that does not depend on the contrast of the image."""

from collections.abc import Iterator, Sequence
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from llmreg.similarity.box_sums import sum_boxes
from llmreg.similarity.masks import count_voxels, full_or_checked_mask

# ConvexAdam's defaults are patches of 3^3 voxels and neighbours that are 2 voxels away.
RADIUS = 1
DILATION = 2
CHANNELS = 12
# The variance of a voxel is kept within these multiples of its mean over the mask, as in ConvexAdam.
_VARIANCE_RANGE = (0.001, 1000.0)
# The mean variance of a constant image is zero. This floor lies far below that of any image, and its square does not
# underflow.
_VARIANCE_FLOOR = 1e-12
# The twelve channels of this number of voxels exist at a time: on a CPU they stay in the cache, on a GPU they need some
# 500 MB.
_CPU_CHUNK, _GPU_CHUNK = 1 << 16, 1 << 20


def mind_ssc(image: Tensor, radius: int = RADIUS, dilation: int = DILATION, mask: Tensor | None = None) -> Tensor:
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

    It differs from ConvexAdam (https://github.com/multimodallearning/convexAdam) in the mask and in two more points.
    The image, not the map of distances, continues beyond its faces with its outermost voxels. The channels are ordered
    by plane (zy, zx, yx), not as in the authors' C++.

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
    if image.ndim != 5 or image.shape[1] != 1:
        raise ValueError(f"image must be (B, 1, z, y, x), got {tuple(image.shape)}")
    if radius < 0 or dilation < 1:
        raise ValueError(f"radius must be at least 0 and dilation at least 1, got {radius} and {dilation}")
    mask = full_or_checked_mask(mask, image)
    with torch.autocast(image.device.type, enabled=False):
        (distances,) = _patch_distances([image.float()], mask, radius, dilation)
        return _descriptor(distances, _mean_variance(distances, mask))


def mind_loss(warped: Tensor, fixed: Tensor, mask: Tensor) -> Tensor:
    """Return the mean squared difference of the descriptors over channels and mask, 0 to 1, lower is better.

    The twelve channels are built from their maps of distances slab by slab, and again in the backward pass. Built
    whole, they and what their gradient needs take more than twice the memory and the time.

    Args:
        warped: (B, 1, z, y, x) float32, the warped moving image.
        fixed: (B, 1, z, y, x) float32, the fixed image.
        mask: (B, 1, z, y, x) bool, the voxels that count.

    Returns:
        (B,).
    """
    distances = _patch_distances([warped, fixed], mask, RADIUS, DILATION)
    means = [_mean_variance(channels, mask) for channels in distances]
    total = warped.new_zeros(len(warped))
    for inside, *channels in _slabs(mask, *distances[0], *distances[1]):
        # The channels are twenty-four views, twelve of each image.
        total = total + checkpoint(
            _squared_difference, inside, means, *channels, use_reentrant=False, preserve_rng_state=False
        )
    return total / count_voxels(mask)


def _squared_difference(mask: Tensor, means: Sequence[Tensor], *distances: Tensor) -> Tensor:
    """Return the squared difference of the descriptors, averaged over channels, summed over the mask (B,)."""
    warped, fixed = _descriptor(distances[:CHANNELS], means[0]), _descriptor(distances[CHANNELS:], means[1])
    return torch.where(mask, (warped - fixed).square().mean(dim=1, keepdim=True), 0.0).flatten(1).sum(dim=1)


def _slabs(*volumes: Tensor) -> Iterator[tuple[Tensor, ...]]:
    shape = volumes[0].shape
    chunk = _CPU_CHUNK if volumes[0].device.type == "cpu" else _GPU_CHUNK
    step = max(1, chunk // max(1, shape[0] * shape[3] * shape[4]))
    return zip(*(torch.split(volume, step, dim=2) for volume in volumes), strict=True)


def _patch_distances(images: Sequence[Tensor], mask: Tensor, radius: int, dilation: int) -> list[list[Tensor]]:
    """Return for each image the twelve distances between patches at the neighbours of a voxel, views (B, 1, z, y, x).

    In each of three planes the neighbours are the corners of a square with two pairs of parallel sides. Parallel sides
    join voxels at the same offset, so one map of distances serves both, read at two positions: six maps are enough.
    """
    size = mask.shape[2:]
    inside, *padded = (
        functional.pad(volume, (radius + dilation,) * 6, mode="replicate") for volume in (mask.float(), *images)
    )
    # These are starts of crops along both axes of the plane. Where one has the ends of a side, the other has the places
    # of the two parallel sides.
    along, across = ((0, 0), (dilation, dilation)), ((0, dilation), (dilation, 0))
    distances: list[list[Tensor]] = [[] for _ in images]
    for plane in combinations(range(3), 2):
        larger = [n + 2 * radius + (dilation if axis in plane else 0) for axis, n in enumerate(size)]
        for ends, sides in ((along, across), (across, along)):
            first, second = (_crop(inside, plane, end, dilation, larger) for end in ends)
            in_mask = first * second
            share = 1.0 / sum_boxes(in_mask, 2 * radius + 1).clamp(min=1.0)
            left_out = in_mask == 0
            for image, channels in zip(padded, distances, strict=True):
                first, second = (_crop(image, plane, end, dilation, larger) for end in ends)
                squares = (first - second).masked_fill(left_out, 0.0).square()
                distance = sum_boxes(squares, 2 * radius + 1) * share
                channels += [_crop(distance, plane, side, 0, size) for side in sides]
    return distances


def _crop(volume: Tensor, plane: Sequence[int], in_plane: Sequence[int], elsewhere: int, size: Sequence[int]) -> Tensor:
    starts = [elsewhere] * 3
    starts[plane[0]], starts[plane[1]] = in_plane
    return volume[:, :, *(slice(start, start + length) for start, length in zip(starts, size, strict=True))]


@torch.no_grad()
def _mean_variance(distances: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Return the mean over the mask of V (B, 1, 1, 1, 1), above zero."""
    total = distances[0].new_zeros(len(mask))
    for inside, *channels in _slabs(mask, *distances):
        stacked = torch.cat(channels, dim=1)
        variance = stacked.mean(dim=1, keepdim=True) - stacked.amin(dim=1, keepdim=True)
        total += torch.where(inside, variance, 0.0).flatten(1).sum(dim=1)
    return (total / count_voxels(mask)).clamp(min=_VARIANCE_FLOOR).view(-1, 1, 1, 1, 1)


def _descriptor(distances: Sequence[Tensor], mean_variance: Tensor) -> Tensor:
    stacked = torch.cat(list(distances), dim=1)
    excess = stacked - stacked.amin(dim=1, keepdim=True)
    low, high = (mean_variance * factor for factor in _VARIANCE_RANGE)
    variance = excess.mean(dim=1, keepdim=True).clamp(low, high)
    return torch.exp(excess * (-1.0 / variance))
