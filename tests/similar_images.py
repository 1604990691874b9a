"""Images, masks and gradients that tests of similarity share."""

from __future__ import annotations

import numpy as np
import torch
from smooth import smooth_noise
from torch import Tensor

from llmreg.similarity.image_similarity import Kind, similarity_loss

SHAPE = (7, 6, 8)


def random_image(seed: int, shape: tuple[int, ...] = SHAPE, batch: int = 1) -> Tensor:
    return torch.rand(batch, 1, *shape, generator=torch.Generator().manual_seed(seed))


def random_mask(seed: int, share: float, batch: int = 1, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """A mask of blocks of 2 voxels, so that some voxels are not at its border."""
    coarse = random_image(seed, tuple(-(-n // 2) for n in shape), batch) < share
    for axis in (2, 3, 4):
        coarse = coarse.repeat_interleave(2, dim=axis)
    return coarse[:, :, : shape[0], : shape[1], : shape[2]].contiguous()


def two_contrasts(seed: int) -> tuple[Tensor, Tensor]:
    """Images of one anatomy whose tissues have unrelated intensities, and each its noise."""
    rng = np.random.default_rng(seed)
    tissue = np.digitize(smooth_noise(rng, (20, 22, 24), 2.5), (-0.4, -0.1, 0.15, 0.4))
    images = (np.array(levels)[tissue] for levels in ((0.1, 0.6, 0.35, 0.9, 0.5), (0.7, 0.2, 0.9, 0.45, 0.1)))
    first, second = (torch.from_numpy(image + rng.normal(0, 0.02, image.shape)).float()[None, None] for image in images)
    return first, second


def gradient_of(kind: Kind, warped: Tensor, fixed: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    leaf = warped.clone().requires_grad_()
    loss = similarity_loss(kind, leaf, fixed, mask)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient
