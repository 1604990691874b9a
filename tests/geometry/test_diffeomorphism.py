"""A field that folds becomes the nearest one that does not."""

import numpy as np
import torch
from smooth import smooth_noise

from llmreg.geometry import warping
from llmreg.geometry.diffeomorphism import nearest_velocity

SHAPE = (24, 20, 22)


def random_flow(seed: int, voxels: float, sigma: float) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([smooth_noise(rng, SHAPE, sigma) * voxels for _ in range(3)]).astype(np.float32))[
        None
    ]


def test_what_does_not_fold_stays_as_it_is():
    flow = warping.exponential(random_flow(1, 2.0, 4.0))
    result = warping.exponential(nearest_velocity(flow))
    assert (result - flow).norm(dim=1).mean() < 0.03
    assert (result - flow).norm(dim=1).max() < 0.5


def test_what_folds_is_smoothed_until_it_does_not():
    flow = random_flow(2, 6.0, 2.5)
    assert (warping.jacobian_determinant(flow) <= 0).float().mean() > 0.01
    velocity = nearest_velocity(flow)
    result = warping.exponential(velocity)
    assert warping.jacobian_determinant(result).min() > 0
    inside = (..., *(slice(4, -4),) * 3)
    assert warping.compose(result, warping.exponential(-velocity))[inside].norm(dim=1).max() < 0.2
    # Nearer to the field than the identity is, by far.
    assert (result - flow).norm(dim=1).mean() < 0.4 * flow.norm(dim=1).mean()
