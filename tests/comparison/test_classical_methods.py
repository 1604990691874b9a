from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from llmreg.comparison.classical_methods import CLASSICAL, is_installed, resample_onto
from llmreg.geometry.grid import Grid, array_to_image, image_to_array

FIXED = Grid((6, 5, 4), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
MOVING = Grid((8, 8, 8), (2.0, 2.0, 2.0), (100.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))


def test_the_moving_image_is_looked_up_through_the_transform() -> None:
    values = np.random.default_rng(0).normal(size=MOVING.shape).astype(np.float32)
    transform = sitk.TranslationTransform(3, (100.0, 2.0, 4.0))
    moved = resample_onto(
        array_to_image(np.zeros(FIXED.shape, np.float32), FIXED), array_to_image(values, MOVING), transform
    )
    assert Grid.from_image(moved).same_as(FIXED)
    # One voxel further along y and two along z.
    np.testing.assert_allclose(image_to_array(moved), values[2:6, 1:6, :6], atol=1e-5)


def test_outside_lies_the_images_smallest_value() -> None:
    fixed, moving = (array_to_image(np.full(grid.shape, -1000, np.int16), grid) for grid in (FIXED, MOVING))
    assert (image_to_array(resample_onto(fixed, moving, sitk.Transform(3, sitk.sitkIdentity))) == -1000).all()


@pytest.mark.parametrize("method", CLASSICAL)
def test_a_method_is_installed_when_its_module_is(method: str) -> None:
    try:
        __import__(CLASSICAL[method].module)
    except ImportError:
        assert not is_installed(method)
    else:
        assert is_installed(method)
