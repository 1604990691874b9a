from __future__ import annotations

import pytest

from llmreg.geometry.grid import Grid


@pytest.fixture(scope="session")
def upright() -> Grid:
    return Grid.from_centre((30, 28, 26), (1.25,) * 3, (5.0, -3.0, 2.0))
