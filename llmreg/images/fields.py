"""Displacement fields from and to files, in any registered format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from llmreg.errors import BadArgument, BadTransform, MissingFile, UnclearField
from llmreg.files import check_outputs
from llmreg.geometry.field import DisplacementField
from llmreg.geometry.grid import Grid
from llmreg.images.array_fields import load_arrays
from llmreg.images.field_formats import FIELD_FORMATS, FieldFormat, field_endings
from llmreg.images.image_files import read_image
from llmreg.images.nifti import DISPLACEMENT_VECTOR, NIFTI_ENDINGS


def write_field(field: DisplacementField, path: Path, format: str = "itk", moving_grid: Grid | None = None) -> None:
    """Write a field.

    Args:
        field: on the fixed image's grid.
        path: its ending must be one of the format's.
        format: a name in :data:`FIELD_FORMATS`.
        moving_grid: for ``learn2reg``, whose steps end in voxels of the moving image: its grid, where it is not the
            fixed one.

    Raises:
        UnknownName: there is no such format.
        BadTransform: files of this format have other endings.
    """
    _get_format(Path(path), format).write(field, Path(path), moving_grid)


def read_field(
    path: Path, format: str = "itk", fixed_grid: Grid | None = None, moving_grid: Grid | None = None
) -> DisplacementField:
    """Read a field.

    Args:
        path: the file.
        format: a name in :data:`FIELD_FORMATS`.
        fixed_grid: for ``learn2reg``, which keeps no geometry: the grid of the fixed image.
        moving_grid: for ``learn2reg``: the grid of the moving image, where it is not the fixed one.

    Raises:
        MissingFile: there is no such file.
        UnknownName: there is no such format.
        UnreadableFile: the file is damaged or holds something else.
        BadArgument: the format needs the fixed grid.
    """
    path = Path(path)
    read = _get_format(path, format).read
    if not path.is_file():
        raise MissingFile(path, "check its name")
    return read(path, fixed_grid, moving_grid)


def detect_field_format(path: Path) -> str:
    """The format of a file of a field, a name in :data:`FIELD_FORMATS`, by its ending and its header.

    Raises:
        UnclearField: the header does not tell.
    """
    path = Path(path)
    if path.suffix == ".npz":
        return "npz" if "vectors" in load_arrays(path) else "learn2reg"
    if not path.name.endswith(NIFTI_ENDINGS):
        return "itk"
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return "itk"  # Its reader says what is wrong.
    if reader.GetDimension() == 3:
        return "nifti-ras" if reader.GetMetaData("intent_code") == str(DISPLACEMENT_VECTOR) else "itk"
    if reader.GetDimension() == 4 and _has_identity_affine(reader):
        return "learn2reg"
    raise UnclearField(
        path,
        "does not say what its vectors are",
        "name its format: learn2reg if they count voxels, nifti-ras if they are mm",
    )


def convert_fields(
    paths: Sequence[Path],
    output: Path,
    source: str | None,
    target: str,
    fixed: Path | None = None,
    moving: Path | None = None,
    *,
    overwrite: bool = False,
) -> list[Path]:
    """Convert files of fields.

    Args:
        paths: the fields' files.
        output: the file for a single field; a folder for several, or where it has no suffix.
        source: the format of all, a name in :data:`FIELD_FORMATS`; detected for each file when None.
        target: the format to write.
        fixed: the fixed image, for ``learn2reg``.
        moving: the moving image, for ``learn2reg``, where it lies on another grid than the fixed one.
        overwrite: replace files that exist.

    Returns:
        The written files.

    Raises:
        UserError: a file is missing, damaged or of another format, or a result exists already.
    """
    is_file = len(paths) == 1 and not output.is_dir() and output.suffix != ""
    if not is_file and output.name.endswith(field_endings()):
        raise BadArgument("output", f"{output} is one file, but there are {len(paths)} fields: name a folder.")
    targets: dict[Path, Path] = {}
    for path in paths:
        if path in targets:
            raise BadArgument("input", f"{path} is given twice: leave one out.")
        result = output if is_file else output / (_strip_ending(path) + FIELD_FORMATS.get(target).ending)
        if result in targets.values():
            raise BadArgument(
                "output", f"Two results would be called {result}: rename a field, or convert them one by one."
            )
        _get_format(result, target)
        targets[path] = result
    grids = [None if path is None else Grid.from_image(read_image(path)) for path in (fixed, moving)]
    check_outputs(targets.values(), paths, overwrite=overwrite)
    with logging_redirect_tqdm():
        for path, result in tqdm(targets.items(), desc="Convert", unit="field"):
            field = read_field(path, source or detect_field_format(path), *grids)
            write_field(field, result, target, grids[1])
    return list(targets.values())


def _strip_ending(path: Path) -> str:
    ending = next((ending for ending in field_endings() if path.name.endswith(ending)), path.suffix)
    return path.name.removesuffix(ending)


def _get_format(path: Path, name: str) -> FieldFormat:
    field_format = FIELD_FORMATS.get(name)
    if not path.name.endswith(field_format.endings):
        raise BadTransform(
            path, f"is no name for a field of format {name}", f"end it in {' or '.join(field_format.endings)}"
        )
    return field_format


def _has_identity_affine(reader: sitk.ImageFileReader) -> bool:
    """Whether the affine is the identity, which SimpleITK and NiBabel write when none is given."""
    return (
        all(value == 0 for value in reader.GetOrigin()[:3])
        and all(value == 1 for value in reader.GetSpacing()[:3])
        and np.array_equal(np.abs(np.reshape(reader.GetDirection(), (4, 4))), np.eye(4))
    )
