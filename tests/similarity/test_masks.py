from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llmreg.similarity.masks import comparable_voxels, count_voxels, full_or_checked_mask, shrink_mask

SHAPE = (6, 5, 8)


def random_mask(seed: int, share: float = 0.6) -> Tensor:
    return (torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(seed)) < share).to(torch.uint8)


def test_comparable_voxels_equal_a_plain_loop() -> None:
    moving_seen, fixed_seen = random_mask(1), random_mask(2)
    flow = 6 * torch.rand(1, 3, *SHAPE, generator=torch.Generator().manual_seed(3)) - 3
    mask = comparable_voxels(moving_seen, fixed_seen, flow)
    assert mask.dtype == torch.bool
    for z, y, x in torch.cartesian_prod(*map(torch.arange, SHAPE)).tolist():
        dx, dy, dz = flow[0, :, z, y, x].tolist()
        target = round(z + dz), round(y + dy), round(x + dx)
        inside = all(0 <= index < size for index, size in zip(target, SHAPE, strict=True))
        moving_shown = moving_seen[0, z, y, x] or (inside and moving_seen[(0, *target)])
        assert bool(mask[0, z, y, x]) == bool(fixed_seen[0, z, y, x] and moving_shown)
    assert not torch.equal(comparable_voxels(fixed_seen, moving_seen, flow), mask)


def test_leading_out_of_the_moving_image_changes_nothing() -> None:
    away = torch.full((1, 3, *SHAPE), 100.0)
    still = comparable_voxels(random_mask(1), random_mask(2), torch.zeros_like(away))
    assert torch.equal(comparable_voxels(random_mask(1), random_mask(2), away), still)


def test_an_empty_mask_counts_as_one_voxel() -> None:
    mask = torch.zeros(3, 1, 1, 2, 2, dtype=torch.bool)
    mask[0, ..., 0], mask[1, ..., 1, :] = True, True
    assert count_voxels(mask).tolist() == [2, 2, 1]


def test_a_block_is_seen_where_all_its_voxels_are() -> None:
    mask = random_mask(1, 0.9)[:, :, :4]
    z, y, x = (size // 2 for size in mask.shape[1:])
    expected = mask.reshape(1, z, 2, y, 2, x, 2).amin(dim=(2, 4, 6))
    assert 0 < expected.float().mean() < 1
    torch.testing.assert_close(shrink_mask(mask, 2), expected.float())
    assert shrink_mask(mask, 1) is mask


def test_a_mask_of_another_type_or_shape_is_refused() -> None:
    image = torch.zeros(1, 1, *SHAPE)
    assert full_or_checked_mask(None, image).all()
    for mask in (image, torch.ones(1, 1, *SHAPE[::-1], dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"^mask "):
            full_or_checked_mask(mask, image)
