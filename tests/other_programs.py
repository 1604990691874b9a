"""Commands in the place of other registration programs."""

from __future__ import annotations

import sys


def made(code: str):
    """A command that runs code, to which the paths are given."""
    return lambda method, paths: [sys.executable, "-c", code, *map(str, paths)]


SHIFT = """
import sys, numpy, SimpleITK as sitk
fixed = sitk.ReadImage(sys.argv[1])
field = sitk.GetImageFromArray(numpy.full((*fixed.GetSize()[::-1], 3), 6, numpy.float32), isVector=True)
field.CopyInformation(fixed)
sitk.WriteImage(field, sys.argv[3])
"""
