"""Grids and displacement fields as tests of geometry need them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from smooth import smooth_noise

from llmreg.geometry.field import DisplacementField
from llmreg.geometry.grid import Grid


@st.composite
def grids(draw) -> Grid:
    """Oblique, anisotropic grids with flipped axes."""
    # Rounded, since ITK's singular value decomposition fails on numbers like 1e-301, which no file holds.
    angles = [round(draw(st.floats(-60, 60)), 3) for _ in range(3)]
    flips = np.diag([draw(st.sampled_from([-1.0, 1.0])) for _ in range(3)])
    direction = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ flips
    spacing = tuple(draw(st.floats(0.5, 4)) for _ in range(3))
    origin = tuple(draw(st.floats(-200, 200)) for _ in range(3))
    size = tuple(draw(st.integers(12, 20)) for _ in range(3))
    return Grid(size, spacing, origin, tuple(direction.ravel().tolist()))


def random_field(grid: Grid, seed: int, voxels: float, sigma: float = 3.0) -> DisplacementField:
    """A smooth field with components of up to so many voxels."""
    rng = np.random.default_rng(seed)
    flow = np.stack([smooth_noise(rng, grid.shape, sigma) for _ in range(3)]) * voxels
    return DisplacementField.from_flow(flow, grid)
