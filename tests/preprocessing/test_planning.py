import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmreg.geometry.grid import Grid
from llmreg.preprocessing.fingerprint import CaseFingerprint
from llmreg.preprocessing.planning import (
    MOST_VOXELS,
    choose_configuration,
    plan_configuration,
    plan_grid,
    plan_window,
    shared_grid,
)

RAS = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)


def case(grid: Grid, extent=(100.0, 100.0, 100.0), intensities=(-200, 20, 30, 40, 90)) -> CaseFingerprint:
    return CaseFingerprint(
        case="A_0001_0000", modality=0, grid=grid.to_dict(), orientation="RAI", size=list(grid.size),
        spacing=list(grid.spacing), intensities=list(intensities), foreground_centre=[0, 0, 0],
        foreground_extent=list(extent), label_volumes={}, label_centroids={}, mirror_overlap=1.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("size", "downsampling", "tokens", "length"),
    [((192, 160, 192), 2, (6, 5, 6), 180), ((192, 208, 176), 1, (12, 13, 11), 1716), ((80, 96, 80), 2, (3, 3, 3), 27)],
)
def test_token_grids_of_the_paper(size, downsampling, tokens, length):
    made = plan_configuration(size, downsampling)
    assert (made.token_grid, made.token_length) == (tokens, length)


def test_large_networks_compute_their_finest_level_twice():
    for size, downsampling, twice in (((192, 160, 192), 2, True), ((192, 160, 192), 1, True), ((96, 96, 96), 2, False)):
        assert plan_configuration(size, downsampling).recompute == twice


@given(size=st.tuples(*[st.integers(1, 300)] * 3), downsampling=st.sampled_from([1, 2]))
def test_padding_is_the_least_that_divides(size, downsampling):
    made = plan_configuration(size, downsampling)
    for wanted, padded, network, tokens in zip(
        size, made.padded_size, made.network_shape, made.token_grid, strict=True
    ):
        assert 0 <= padded - wanted < 16 * downsampling
        assert padded == network * downsampling == tokens * 16 * downsampling


def test_a_shared_grid_is_taken_over_and_others_are_brought_near_isotropy():
    grid = Grid((80, 96, 70), (2.0, 2.0, 2.5), (1, 2, 3), RAS)
    assert shared_grid([case(grid), case(grid)]) == grid
    assert plan_grid([case(grid), case(grid)])[:2] == ((2.0, 2.0, 2.5), (80, 96, 70))
    anisotropic = [case(Grid((256, 200, n), (1.25, 1.25, 7.7), (n, 0, 0), RAS), (320, 250, 7.7 * n)) for n in (30, 40)]
    spacing, size, _ = plan_grid(anisotropic)
    assert max(spacing) / min(spacing) <= 1.5**2 + 0.01
    assert np.all(np.array(spacing) * size >= np.array((320, 250, 231)))
    huge = [case(Grid((900, 900, n), (0.3, 0.3, 0.3), (0, 0, 0), RAS), (300, 300, 300)) for n in (900, 901)]
    assert np.prod(plan_grid(huge)[1]) < 1.02 * MOST_VOXELS


def test_ct_gets_a_window_around_the_structures_and_others_the_papers_percentiles():
    brain, _ = plan_window([case(Grid((9, 9, 9), (1, 1, 1), (0, 0, 0)))], "CT")
    assert (brain.scheme, brain.lower, brain.upper) == ("window", 0, 60)
    bone, _ = plan_window([case(Grid((9, 9, 9), (1, 1, 1), (0, 0, 0)), intensities=(-900, -800, 0, 1500, 2000))], "CT")
    assert (bone.lower, bone.upper) == (-180, 400)
    mr, _ = plan_window([case(Grid((9, 9, 9), (1, 1, 1), (0, 0, 0)))], "MR T1")
    assert (mr.scheme, mr.lower, mr.upper) == ("percentiles", 0, 95)


def test_half_resolution_is_the_default_unless_too_few_tokens_are_left():
    assert choose_configuration(plan_configuration((80, 96, 80), 2))[0] == "half"
    assert choose_configuration(plan_configuration((80, 96, 30), 2))[0] == "full"
