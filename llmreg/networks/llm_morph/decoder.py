"""The coarse-to-fine decoder: four stages, three of which predict a field."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llmreg.geometry import warping
from llmreg.networks.gradient_checkpointing import call_with_checkpointing
from llmreg.networks.layers import ConvBlock, FieldHead, UpConvolution
from llmreg.networks.llm_morph.cost_volume import cost_volume
from llmreg.networks.llm_morph.settings import cost_channels


class Decoder(nn.Module):
    """Stages S4 to S1 at 1/8, 1/4, 1/2 and 1 of the resolution.

    S4 fuses [F^4, F_m^4, F_f^4]. S3 adds S4's upsampled output and predicts the first field. S2 and S1 add the moving
    image warped by the upsampled field, and that field, and predict the displacement that is left. All three may be
    given cost volumes too, of the images as the field so far aligns them.

    Args:
        width: channels at full resolution.
        adapted: channels of F^1 to F^4; 0 for a decoder without them.
        normalization: ``instance`` or ``none``.
        accumulate: ``compose`` or ``sum`` (see :class:`llmreg.networks.llm_morph.settings.LLMMorphSettings`).
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
        images: tuple[Tensor, Tensor],
        *,
        recompute: bool = False,
    ) -> Tensor:
        """Predict the field.

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
        if not recompute:
            return self._refine("1", features, flow, *images, *f1)[1]
        refined: Tensor = call_with_checkpointing(self._refine_in_less_memory, features, flow, *images, *f1)
        return refined

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
        """Features and field of stage 2 or 1, from those of the stage before."""
        coarse = self._upsample(flow)
        up = self.ups[stage](features)
        warped = warping.warp(moving, coarse)
        guided = torch.cat([up, warped.to(up.dtype), coarse.to(up.dtype)], dim=1)
        costs = self._costs((warped, fixed), up.dtype)
        features = self.stages[stage](guided, costs, *skips, save_memory=save_memory)
        residual = self.heads[stage](features)
        # The residual is defined on the grid of the image warped so far, so it is followed first.
        return features, warping.compose(residual, coarse) if self.compose else coarse + residual

    def _refine_in_less_memory(self, *inputs: Tensor) -> Tensor:
        return self._refine("1", *inputs, save_memory=True)[1]

    def _costs(self, images: Sequence[Tensor], dtype: torch.dtype) -> Tensor | None:
        moving, fixed = images
        return cost_volume(moving, fixed, self.cost_radius).to(dtype) if self.cost_radius else None

    def _upsample(self, flow: Tensor) -> Tensor:
        finer = warping.upsample(flow, 2)
        return finer if self.compose else finer / 2


class _Stage(nn.Sequential):
    """Two convolutions over the inputs of a stage; an input that is None has no channels."""

    def __init__(self, incoming: int, channels: int, normalization: str) -> None:
        super().__init__(ConvBlock(incoming, channels, normalization), ConvBlock(channels, channels, normalization))

    def forward(self, *parts: Tensor | None, save_memory: bool = False) -> Tensor:
        first, second = self
        present = [part for part in parts if part is not None]
        features: Tensor = second(first(*present, save_memory=save_memory))
        return features
