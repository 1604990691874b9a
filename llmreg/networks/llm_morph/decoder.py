"""The coarse-to-fine decoder: four stages, three of which predict a field."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llmreg.geometry import warping
from llmreg.networks.config import cost_channels
from llmreg.networks.convolution import Conv3d
from llmreg.networks.gradient_checkpointing import recomputed
from llmreg.networks.llm_morph.adapters import UpConvolution
from llmreg.networks.llm_morph.cost_volume import cost_volume
from llmreg.networks.llm_morph.encoder import ConvBlock

HEAD_STD = 1e-5


class Decoder(nn.Module):
    """Stages S4 to S1 at 1/8, 1/4, 1/2 and 1 of the resolution.

    S4 fuses [F^4, F_m^4, F_f^4]. S3 adds S4's upsampled output and predicts the first field. S2 and S1 add the moving
    image warped by the upsampled field, and that field, and predict what is left to do. All three may be given cost
    volumes too, of the images as the field so far leaves them.

    Args:
        width: channels at full resolution.
        adapted: channels of F^1 to F^4; 0 for a decoder without them.
        normalization: ``instance`` or ``none``.
        accumulate: ``compose`` or ``sum`` (see :class:`llmreg.networks.config.LLMMorphSettings`).
        cost_radius: of the cost volumes; 0 for none.
    """

    def __init__(
        self, width: int, adapted: Sequence[int], normalization: str, accumulate: str, cost_radius: int = 0
    ) -> None:
        super().__init__()
        self.compose = accumulate == "compose"
        self.cost_radius = cost_radius
        self.stages = nn.ModuleDict()
        self.ups = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        for stage in (4, 3, 2, 1):
            channels = width * 2 ** (stage - 1)
            incoming = adapted[stage - 1] + 2 * channels
            if stage < 4:
                self.ups[str(stage)] = UpConvolution(2 * channels, channels)
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
        images: Sequence[Tensor],
        recompute: bool = False,
    ) -> Tensor:
        """Predict the field.

        Args:
            adapted: F^1 to F^4, finest first; None for one that has no channels.
            moving: the moving encoder's features, finest first.
            fixed: the fixed encoder's.
            images: the moving and the fixed image, (B, 1, z, y, x) each.
            recompute: as in LLMMorph.

        Returns:
            (B, 3, z, y, x) float32, channels (x, y, z), in voxels.
        """
        features = self.stages["4"](adapted[3], moving[3], fixed[3])
        levels = {stage: [warping.downsample_image(image, 2 ** (stage - 1)) for image in images] for stage in (3, 2)}
        up = self.ups["3"](features)
        features = self.stages["3"](up, self._costs(levels[3], up.dtype), adapted[2], moving[2], fixed[2])
        flow = self.heads["3"](features)
        for stage, resized in ((2, levels[2]), (1, images)):
            index = stage - 1
            inputs = features, flow, *resized, adapted[index], moving[index], fixed[index]
            sparing = recompute and stage == 1
            features, flow = recomputed(self._refined, str(stage), sparing, *inputs, when=sparing)
        return flow

    def _refined(
        self,
        stage: str,
        apart: bool,
        features: Tensor,
        flow: Tensor,
        moving: Tensor,
        fixed: Tensor,
        *skips: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Features and field of stage 2 or 1, from those of the stage before."""
        coarse = self._upsampled(flow)
        up = self.ups[stage](features)
        warped = warping.warp(moving, coarse)
        guided = torch.cat([up, warped.to(up.dtype), coarse.to(up.dtype)], dim=1)
        features = self.stages[stage](guided, self._costs((warped, fixed), up.dtype), *skips, apart=apart)
        residual = self.heads[stage](features)
        # The residual lives on the grid of the image warped so far, so it is followed first.
        return features, warping.compose(residual, coarse) if self.compose else coarse + residual

    def _costs(self, images: Sequence[Tensor], dtype: torch.dtype) -> Tensor | None:
        moving, fixed = images
        return cost_volume(moving, fixed, self.cost_radius).to(dtype) if self.cost_radius else None

    def _upsampled(self, flow: Tensor) -> Tensor:
        finer = warping.upsample(flow, 2)
        return finer if self.compose else finer / 2


class _Stage(nn.Sequential):
    """Two convolutions over what a stage is given, of which None has no channels."""

    def __init__(self, incoming: int, channels: int, normalization: str) -> None:
        super().__init__(ConvBlock(incoming, channels, normalization), ConvBlock(channels, channels, normalization))

    def forward(self, *parts: Tensor | None, apart: bool = False) -> Tensor:
        first, second = self
        features: Tensor = second(first(*(part for part in parts if part is not None), apart=apart))
        return features


class FieldHead(Conv3d):
    """3x3x3 convolution to a field, near zero at first; in float32 whatever the features are in."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 3, 3, padding=1)
        nn.init.normal_(self.weight, std=HEAD_STD)
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.float())
