"""Learn2Reg's arrays against SciPy and SimpleITK."""

from dataclasses import replace

import numpy as np
from random_fields import random_field

from llmreg.geometry.arrays import array_to_image
from llmreg.geometry.field import DisplacementField
from llmreg.geometry.grid import Grid
from llmreg.geometry.learn2reg import from_learn2reg, to_learn2reg

OTHER = Grid((20, 18, 16), (1.2, 1.0, 2.0), (0.0, -10.0, 3.0))


def test_large_fields_are_converted_in_slabs(oblique, monkeypatch):
    field = random_field(oblique, 9, 1.0)
    expected = to_learn2reg(field, OTHER)
    monkeypatch.setattr("llmreg.geometry.grid.SLAB_VOXELS", 3 * oblique.size[0] * oblique.size[1])
    assert len(list(oblique.slabs())) == 4
    np.testing.assert_array_equal(to_learn2reg(field, OTHER), expected)
    np.testing.assert_allclose(from_learn2reg(expected, oblique, OTHER).vectors, field.vectors, atol=1e-3)


def test_steps_lead_to_the_same_point_of_the_moving_image(oblique):
    """In voxels along each array's axes, from a fixed index to a moving one, by SimpleITK's own coordinates."""
    field = random_field(oblique, 3, 1.0)
    fixed, moving = (array_to_image(np.zeros(grid.shape, np.uint8), grid) for grid in (oblique, OTHER))
    steps = to_learn2reg(field, OTHER)
    assert steps.shape == (*oblique.size, 3)
    for index in [(0, 0, 0), (3, 5, 7), (13, 11, 9)]:
        point = np.array(fixed.TransformIndexToPhysicalPoint(index)) + field.vectors[index[::-1]]
        expected = moving.TransformPhysicalPointToContinuousIndex(point.tolist())
        np.testing.assert_allclose(index + steps[index], expected, atol=1e-4)
    # Images on one grid need no second one.
    np.testing.assert_allclose(to_learn2reg(field), to_learn2reg(field, replace(oblique)), atol=0)
    np.testing.assert_allclose(from_learn2reg(to_learn2reg(field), oblique).vectors, field.vectors, atol=1e-4)


def test_where_nothing_moves_the_steps_are_zero(oblique):
    assert not to_learn2reg(DisplacementField(np.zeros((*oblique.shape, 3), np.float32), oblique)).any()
