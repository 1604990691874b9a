"""From tokens to the flow: the adapters of the stages, cost volumes, and the coarse-to-fine decoder.

Cost volumes are PWC-Net's (Sun et al., "PWC-Net: CNNs for Optical Flow Using Pyramid, Warping, and Cost Volume", CVPR
2018). Features of two contrasts cannot be compared before they are learnt, so MIND-SSC's self-similarities are compared
here, as in ConvexAdam.
"""

from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import cast

import torch
from torch import Tensor, nn

from llmreg.geometry import warping
from llmreg.networks.fast_layers import call_with_checkpointing
from llmreg.networks.layers import ConvBlock, FieldHead, up_convolution
from llmreg.networks.llm_morph.plugin import cost_channels
from llmreg.similarity.mind import mind_ssc

# DILATION is the distance in voxels of the neighbours that describe a voxel; it is small, since the levels are coarse.
# SCALE multiplies a mean squared difference of descriptors, to make it about as large as other features.
DILATION, SCALE = 1, 10.0


def voxel_shuffle(tokens: Tensor, grid: Sequence[int], factor: int) -> Tensor:
    """Spread each token's channels over a block of factor^3 voxels.

    Args:
        tokens: (B, L, C * factor^3), L = d * h * w with w fastest; channel
            c * factor^3 + dz * factor^2 + dy * factor + dx.
        grid: (d, h, w).
        factor: edge of a block.

    Returns:
        (B, C, d * factor, h * factor, w * factor) with the channel above at voxel (z * factor + dz, ...) of channel c.
    """
    blocks: Tensor = tokens.unflatten(2, (-1, factor, factor, factor)).unflatten(1, tuple(grid))
    return blocks.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)


class StageAdapter(nn.Module):
    """Adapter_j: tokens (B, L, H) to the feature map F^j at 1/2^(j-1) of the resolution.

    One linear layer to C_j = 16 c 4^(4-j) channels, then a voxel-shuffle. ``half`` shuffles by 2^(4-j), to half the
    stage's resolution, and a transposed convolution (kernel 2, stride 2) halves the channels and doubles the
    resolution, which gives the encoder's c 2^(j-1) channels. ``direct`` shuffles by 2^(5-j) and stops.
    """

    def __init__(self, width: int, base: int, stage: int, *, direct: bool) -> None:
        super().__init__()
        total = 16 * base * 4 ** (4 - stage)
        self.factor = 2 ** (5 - stage if direct else 4 - stage)
        shuffled = total // self.factor**3
        self.channels = shuffled if direct else shuffled // 2
        self.linear = nn.Linear(width, total)
        self.up = None if direct else up_convolution(shuffled, self.channels)

    def forward(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        """F^j from tokens (B, L, H) of a grid (d, h, w)."""
        features = voxel_shuffle(self.linear(tokens), grid, self.factor)
        return features if self.up is None else self.up(features)


@torch.no_grad()
def cost_volume(moving: Tensor, fixed: Tensor, radius: int) -> Tensor:
    """Mean squared difference of MIND-SSC between the fixed image and the moving image one step away, for all steps.

    Beyond its faces the moving image is continued by its outermost voxels. There is no gradient: the costs inform the
    decoder, but the flow is not pulled towards what looks alike.

    Args:
        moving: (B, 1, z, y, x), warped by the flow so far.
        fixed: (B, 1, z, y, x).
        radius: the longest step along each axis, voxels.

    Returns:
        (B, (2 * radius + 1)^3, z, y, x) float32, steps in the order of (z, y, x), x fastest.
    """
    fixed_mind, moving_mind = mind_ssc(fixed, dilation=DILATION), mind_ssc(moving, dilation=DILATION)
    z, y, x = fixed.shape[2:]
    moving_mind = nn.functional.pad(moving_mind, (radius,) * 6, mode="replicate")
    costs = fixed_mind.new_empty(len(fixed), cost_channels(radius), z, y, x)
    for channel, (i, j, k) in enumerate(product(range(2 * radius + 1), repeat=3)):
        difference = fixed_mind - moving_mind[:, :, i : i + z, j : j + y, k : k + x]
        costs[:, channel] = SCALE * difference.square().mean(dim=1)
    return costs


class Decoder(nn.Module):
    """Stages S4 to S1 at 1/8, 1/4, 1/2 and 1 of the resolution.

    S4 fuses [F^4, F_m^4, F_f^4]. S3 adds S4's upsampled output and predicts the first flow. S2 and S1 add the moving
    image warped by the upsampled flow, and that flow, and predict the displacement that is left. All three may also
    get cost volumes of the images as the flow so far aligns them.

    Args:
        width: channels at full resolution.
        adapted_channels: channels of F^1 to F^4; 0 for a decoder without them.
        normalization: ``instance`` or ``none``.
        accumulate: ``compose`` or ``sum`` (see :class:`llmreg.networks.llm_morph.plugin.LLMMorphSettings`).
        cost_radius: of the cost volumes; 0 for none.
    """

    def __init__(
        self,
        width: int,
        adapted_channels: Sequence[int],
        normalization: str,
        accumulate: str,
        cost_radius: int = 0,
    ) -> None:
        super().__init__()
        self.compose = accumulate == "compose"
        self.cost_radius = cost_radius
        self.stages = nn.ModuleDict()
        self.ups = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        for stage in (4, 3, 2, 1):
            channels = width * 2 ** (stage - 1)
            incoming = adapted_channels[stage - 1] + 2 * channels
            if stage < 4:
                self.ups[str(stage)] = up_convolution(2 * channels, channels)
                self.heads[str(stage)] = FieldHead(channels)
                incoming += channels + cost_channels(cost_radius)
            if stage < 3:
                incoming += 4
            self.stages[str(stage)] = _Stage(incoming, channels, normalization)

    def forward(
        self,
        adapted: Sequence[Tensor | None],
        moving: Sequence[Tensor],
        fixed: Sequence[Tensor],
        images: tuple[Tensor, Tensor],
        *,
        recompute: bool = False,
    ) -> Tensor:
        """Predict the flow.

        Args:
            adapted: F^1 to F^4, finest first; None for one that has no channels.
            moving: the moving encoder's features F_m, finest first.
            fixed: the fixed encoder's F_f.
            images: the moving and the fixed image, (B, 1, z, y, x) each.
            recompute: gradient checkpointing of the finest stage.

        Returns:
            (B, 3, z, y, x) float32, channels (x, y, z), in voxels.
        """
        f1, f2, f3, f4 = zip(adapted, moving[:4], fixed[:4], strict=True)
        quarter, half = ([warping.downsample_image(image, factor) for image in images] for factor in (4, 2))
        features = self.stages["4"](*f4)
        up = self.ups["3"](features)
        features = self.stages["3"](up, self._costs(quarter, up.dtype), *f3)
        flow = self.heads["3"](features)
        features, flow = self._refine("2", features, flow, *half, *f2)
        finest = partial(self._refine, "1", save_memory=recompute)
        return call_with_checkpointing(finest, features, flow, *images, *f1, when=recompute)[1]

    def _refine(
        self,
        stage: str,
        features: Tensor,
        flow: Tensor,
        moving: Tensor,
        fixed: Tensor,
        *skips: Tensor | None,
        save_memory: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Compute the features and the flow of stage 2 or 1 from those of the stage before."""
        coarse = warping.upsample(flow, 2)
        if not self.compose:
            coarse = coarse / 2
        up = self.ups[stage](features)
        warped = warping.warp(moving, coarse)
        guided = torch.cat([up, warped.to(up.dtype), coarse.to(up.dtype)], dim=1)
        costs = self._costs((warped, fixed), up.dtype)
        features = self.stages[stage](guided, costs, *skips, save_memory=save_memory)
        residual = self.heads[stage](features)
        # The residual is defined on the grid of the image warped so far, so it is followed first.
        return features, warping.compose(residual, coarse) if self.compose else coarse + residual

    def _costs(self, images: Sequence[Tensor], dtype: torch.dtype) -> Tensor | None:
        moving, fixed = images
        return cost_volume(moving, fixed, self.cost_radius).to(dtype) if self.cost_radius else None


class _Stage(nn.Sequential):
    """Two convolutions over the inputs of a stage; an input that is None has no channels."""

    def __init__(self, incoming: int, channels: int, normalization: str) -> None:
        super().__init__(ConvBlock(incoming, channels, normalization), ConvBlock(channels, channels, normalization))

    def forward(self, *parts: Tensor | None, save_memory: bool = False) -> Tensor:
        first, second = self
        present = (part for part in parts if part is not None)
        return cast(Tensor, second(first(*present, save_memory=save_memory)))
