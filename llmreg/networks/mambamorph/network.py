"""MambaMorph: state-space layers on both images' features and a convolutional decoder that predicts a velocity."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from llmreg.networks.fast_layers import call_with_checkpointing
from llmreg.networks.mambamorph.plugin import MambaMorphSettings
from llmreg.networks.mambamorph.selective_scan import selective_scan
from llmreg.networks.registration_network import RegistrationNetwork
from llmreg.networks.transmorph.token_pyramid import PATCH, SkipDecoder, TokenPyramid, stage_widths
from llmreg.networks.voxelmorph.network import UNet

_STAGES, _STATES, _KERNEL, _EXPANSION, _FEATURES = 3, 16, 4, 2, 16


class Mamba(nn.Module):
    """A Mamba block; its parameters are called as in ``mamba_ssm`` and transformers.

    Reference: Gu and Dao, Mamba: Linear-time sequence modeling with selective state spaces, 2023.

    Args:
        width: channels of the tokens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        inner, rank = _EXPANSION * width, math.ceil(width / 16)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, _KERNEL, groups=inner, padding=_KERNEL - 1)
        self.x_proj = nn.Linear(inner, rank + 2 * _STATES, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, _STATES + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)
        # The initial step sizes lie between these.
        low, high = math.log(1e-3), math.log(1e-1)
        steps = torch.exp(low + (high - low) * torch.rand(inner))
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        # This is the inverse of softplus.
        self.dt_proj.bias = nn.Parameter(steps + torch.log(-torch.expm1(-steps)))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, C) -> the same; a token sees those before it."""
        inner, gate = self.in_proj(tokens).chunk(2, dim=-1)
        inner = nn.functional.silu(self.conv1d(inner.transpose(1, 2))[..., : tokens.shape[1]].transpose(1, 2))
        steps, b, c = self.x_proj(inner).split([self.dt_proj.in_features, _STATES, _STATES], dim=-1)
        delta = nn.functional.softplus(self.dt_proj(steps).float())
        scanned = selective_scan(inner, delta, -torch.exp(self.A_log.float()), b, c, self.D)
        return cast(Tensor, self.out_proj(scanned * nn.functional.silu(gate)))


class MambaStage(nn.Module):
    """LayerNorm and a Mamba block, without a residual connection, as published; tokens follow each other x fastest."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mamba = Mamba(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, d, h, w, C) -> the same."""
        return cast(Tensor, self.mamba(self.norm(tokens.flatten(1, 3)))).view(tokens.shape)


class MambaMorph(RegistrationNetwork):
    """MambaMorph with 7,590,531 parameters, or 7,305,459 without its feature extractor.

    The published 7,594,646 count a head for contrastive learning that registration does not use. With ``recompute``,
    the feature extractor's activations are not kept.
    Reference: Guo et al., MambaMorph: a Mamba-based framework for medical MR-CT deformable registration, 2024.

    Args:
        settings: the network's settings.
        shape: (z, y, x) of the images.
    """

    multiple = PATCH * 2 ** (_STAGES - 1)

    def __init__(self, settings: MambaMorphSettings, shape: Sequence[int]) -> None:
        super().__init__(shape, settings.field)
        self.features = UNet(1, [_FEATURES] * 2, [_FEATURES] * 4) if settings.features else None
        incoming, widths = 2 * _FEATURES if settings.features else 2, stage_widths(_STAGES)
        self.encoder = TokenPyramid(incoming, [MambaStage(width) for width in widths], positions=True)
        self.decoder = SkipDecoder(incoming, widths)

    def predict(self, moving: Tensor, fixed: Tensor) -> Tensor:
        if self.features is not None:
            moving, fixed = (
                call_with_checkpointing(self.features, image, when=self.checkpoints_gradients)
                for image in (moving, fixed)
            )
        images = torch.cat([moving, fixed], dim=1)
        return cast(Tensor, self.decoder(images, self.encoder(images)))
