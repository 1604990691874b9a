"""Helpers that several test modules use."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import settings

from llmreg.geometry.grid import Grid

# A busy machine takes any time for an example, so no test has a deadline.
settings.register_profile("llmreg", deadline=None)
settings.load_profile("llmreg")


@pytest.fixture
def oblique() -> Grid:
    """An oblique, anisotropic grid with flipped axes."""
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    direction = turn @ np.diag([-1.0, 1.0, -1.0])
    return Grid((14, 12, 10), (1.0, 1.5, 3.0), (10.0, -20.0, 5.0), tuple(direction.ravel().tolist()))


@pytest.fixture(autouse=True)
def log_handlers() -> Iterator[None]:
    """Take away what a command logs to: pytest closes the stream that was stderr during its test."""
    before = logging.getLogger().handlers[:]
    yield
    logging.getLogger().handlers[:] = before
