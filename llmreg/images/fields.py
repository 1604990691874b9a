"""Displacement fields, in any registered format, and ITK transforms from and to files."""

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
from llmreg.images.field_formats import load_arrays
from llmreg.images.formats import FIELD_FORMATS, FieldFormat, field_endings, strip_ending
from llmreg.images.image_files import read_header, read_image
from llmreg.images.itk import DISPLACEMENT_VECTOR, NIFTI_ENDINGS


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
    return _get_format(Path(path), format).read(Path(path), fixed_grid, moving_grid)


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
    try:
        reader = read_header(path)
    except RuntimeError:
        return "itk"  # The format's reader says what is wrong.
    if reader.GetDimension() == 3:
        return "nifti-ras" if reader.GetMetaData("intent_code") == str(DISPLACEMENT_VECTOR) else "itk"
    # SimpleITK and NiBabel write the identity as the affine when none is given.
    if (
        reader.GetOrigin()[:3] == (0, 0, 0)
        and reader.GetSpacing()[:3] == (1, 1, 1)
        and np.array_equal(np.abs(reader.GetDirection()), np.eye(4).ravel())
    ):
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
            raise BadArgument("paths", f"{path} is given twice: leave one out.")
        result = (
            output if is_file else output / (strip_ending(path, field_endings()) + FIELD_FORMATS.get(target).endings[0])
        )
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


def _get_format(path: Path, name: str) -> FieldFormat:
    field_format = FIELD_FORMATS.get(name)
    if not path.name.endswith(field_format.endings):
        raise BadTransform(
            path, f"is no name for a field of format {name}", f"end it in {' or '.join(field_format.endings)}"
        )
    return field_format


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
