"""Commands in the place of other registration programs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmreg.comparison import classical_methods, command_lines


def replace_programs(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let every classical method be installed and run code, to which the paths of fixed, moving and field are given."""
    monkeypatch.setattr(classical_methods, "is_installed", lambda method: True)
    monkeypatch.setattr(command_lines, "registration_command", command_of(code))


def command_of(code: str) -> Callable[[str, Path, Path, Path], list[str]]:
    return lambda method, fixed, moving, field: [sys.executable, "-c", code, str(fixed), str(moving), str(field)]


SHIFT = """
import sys, numpy, SimpleITK as sitk
fixed = sitk.ReadImage(sys.argv[1])
field = sitk.GetImageFromArray(numpy.full((*fixed.GetSize()[::-1], 3), 6, numpy.float32), isVector=True)
field.CopyInformation(fixed)
sitk.WriteImage(field, sys.argv[3])
"""
