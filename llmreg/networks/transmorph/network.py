"""TransMorph: a Swin transformer on both images and a convolutional decoder that predicts a displacement."""

from collections.abc import Sequence
from itertools import islice
from typing import cast

import torch
from monai.networks.nets.swin_unetr import SwinTransformerBlock, compute_mask, get_window_size
from torch import Tensor, nn

from llmreg.networks.registration_network import RegistrationNetwork
from llmreg.networks.transmorph.plugin import TransMorphSettings
from llmreg.networks.transmorph.token_pyramid import PATCH, SkipDecoder, TokenPyramid, stage_widths

WINDOW = (5, 6, 7)
_DEPTHS, _HEADS = (2, 2, 4, 2), (4, 4, 8, 8)


class WindowStage(nn.Module):
    """Swin transformer blocks, whose windows are shifted by half in every other one.

    Args:
        width: channels of the tokens.
        heads: of the attention.
        drop_paths: for each block, the probability with which a training step skips it.
    """

    def __init__(self, width: int, heads: int, drop_paths: Sequence[float]) -> None:
        super().__init__()
        self.shift = tuple(size // 2 for size in WINDOW)
        self.blocks = nn.ModuleList(
            SwinTransformerBlock(
                width, heads, WINDOW, self.shift if index % 2 else (0, 0, 0), qkv_bias=False, drop_path=probability
            )
            for index, probability in enumerate(drop_paths)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, d, h, w, C) -> the same."""
        d, h, w = tokens.shape[1:4]
        # With less than a window, MONAI's blocks would take the wrong rows of their table of relative positions.
        short = [max(0, least - size) for least, size in zip(WINDOW, (d, h, w), strict=True)]
        tokens = nn.functional.pad(tokens, (0, 0, 0, short[2], 0, short[1], 0, short[0]))
        sizes = tuple(tokens.shape[1:4])
        window, shift = get_window_size(sizes, WINDOW, self.shift)
        padded = [-(-size // step) * step for size, step in zip(sizes, window, strict=True)]
        mask = compute_mask(padded, window, shift, tokens.device)
        for block in self.blocks:
            tokens = block(tokens, mask)
        return tokens[:, :d, :h, :w]


class TransMorph(RegistrationNetwork):
    """TransMorph with 46,771,251 parameters, or 14,287,299 in the three stages that MambaMorph's authors compare with.

    Windows of 5 x 6 x 7 tokens lie along z, y and x.
    Reference: Chen et al., TransMorph: Transformer for unsupervised medical image registration, MedIA 2022.

    Args:
        settings: the network's settings.
        shape: (z, y, x) of the images.
    """

    def __init__(self, settings: TransMorphSettings, shape: Sequence[int]) -> None:
        super().__init__(shape, settings.field)
        depths, widths = _DEPTHS[: settings.stages], stage_widths(settings.stages)
        self.multiple = PATCH * 2 ** (settings.stages - 1)
        last = sum(depths) - 1
        drop_paths = iter(settings.drop_path * block / last for block in range(last + 1))
        stages = [
            WindowStage(width, heads, list(islice(drop_paths, depth)))
            for width, heads, depth in zip(widths, _HEADS, depths, strict=False)
        ]
        self.encoder = TokenPyramid(2, stages)
        self.decoder = SkipDecoder(2, widths)

    def predict(self, moving: Tensor, fixed: Tensor) -> Tensor:
        images = torch.cat([moving, fixed], dim=1)
        return cast(Tensor, self.decoder(images, self.encoder(images)))
