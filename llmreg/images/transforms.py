"""ITK transforms from files."""

from __future__ import annotations

from pathlib import Path

import SimpleITK as sitk

from llmreg.errors import BadTransform, MissingFile


def read_transform(path: Path) -> sitk.Transform:
    """An ITK transform in three dimensions (.tfm, .txt, .mat, .h5 ...).

    Raises:
        MissingFile: there is no such file.
        BadTransform: the file holds no such transform.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFile(path, "check its name")
    try:
        transform: sitk.Transform = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        raise BadTransform(path, "cannot be read as an ITK transform", "save it as .tfm or .h5") from error
    if transform.GetDimension() != 3:
        raise BadTransform(path, f"is a transform in {transform.GetDimension()} dimensions", "give one in 3")
    return transform


def read_linear_transform(path: Path) -> sitk.Transform:
    """A linear ITK transform, with the errors of :func:`read_transform`."""
    transform = read_transform(path)
    if not transform.IsLinear():
        raise BadTransform(path, "is not a linear 3-D transform", "give a rigid or affine one")
    return transform
