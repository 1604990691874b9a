"""The file formats of displacement fields, to and from :class:`~llmreg.geometry.field.DisplacementField`."""

from __future__ import annotations

import gzip
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from llmreg.errors import UserError
from llmreg.files import atomic_write, check_outputs
from llmreg.geometry.field import DisplacementField
from llmreg.geometry.grid import Grid
from llmreg.geometry.io import (
    lps_to_ras,
    read_any,
    read_field,
    read_image,
    times,
    write_field,
    write_image,
    write_with_itk,
)

NIFTI = (".nii.gz", ".nii")
# nifti1.h: a displacement vector, which NIfTI has in RAS. ITK (5.3 and later) turns it to LPS when it reads it.
_DISPLACEMENT_VECTOR = 1006
_INTENT_AT = 68
_NPZ_KEYS = ("vectors", "size", "spacing", "origin", "direction")


@dataclass(frozen=True)
class Format:
    """How fields are kept in files.

    Attributes:
        suffix: what files are called when nobody chooses.
        suffixes: what they may be called.
        read: from a path, the fixed grid and the moving grid (which only formats without geometry look at).
        write: a field to a path, with the moving grid.
    """

    suffix: str
    suffixes: tuple[str, ...]
    read: Callable[[Path, Grid | None, Grid | None], DisplacementField]
    write: Callable[[DisplacementField, Path, Grid | None], None]


def write_as(field: DisplacementField, path: Path, format: str, moving_grid: Grid | None = None) -> None:
    """Write a field as one of :data:`FORMATS`.

    Args:
        field: on the fixed image's grid.
        path: its suffix must be one of the format's.
        format: a key of :data:`FORMATS`.
        moving_grid: for ``learn2reg``, whose steps end in voxels of the moving image: its grid, where it is not the
            fixed one.

    Raises:
        UserError: the format is unknown, or its files have other suffixes.
    """
    _of(Path(path), format).write(field, Path(path), moving_grid)


def read_as(
    path: Path, format: str, fixed_grid: Grid | None = None, moving_grid: Grid | None = None
) -> DisplacementField:
    """Read a field that was written in one of :data:`FORMATS`.

    Args:
        path: the file.
        format: a key of :data:`FORMATS`.
        fixed_grid: for ``learn2reg``, which keeps no geometry: the grid of the fixed image.
        moving_grid: for ``learn2reg``: the grid of the moving image, where it is not the fixed one.

    Raises:
        UserError: the file is missing, damaged, or holds something else.
    """
    path = Path(path)
    reader = _of(path, format).read
    if not path.is_file():
        raise UserError(f"The displacement field {path} does not exist: check its name.")
    return reader(path, fixed_grid, moving_grid)


def format_of(path: Path) -> str:
    """The format that a file says it has. Raises UserError where it leaves that open."""
    path = Path(path)
    if path.suffix == ".npz":
        return "npz" if "vectors" in _load(path) else "learn2reg"
    if not path.name.endswith(NIFTI):
        return "itk"
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return "itk"  # Whose reader says what is wrong.
    if reader.GetDimension() == 3:
        return "nifti-ras" if reader.GetMetaData("intent_code") == str(_DISPLACEMENT_VECTOR) else "itk"
    if reader.GetDimension() == 4 and _is_nowhere(reader):
        return "learn2reg"
    raise UserError(
        f"{path} does not say what its vectors are: name its format with --from (learn2reg if they count voxels, "
        "nifti-ras if they are mm)."
    )


def convert(
    paths: Sequence[Path],
    output: Path,
    source: str | None,
    target: str,
    fixed: Path | None = None,
    moving: Path | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Convert files of fields.

    Args:
        paths: what is converted.
        output: the file for a single one; else, or where it has no suffix, a folder.
        source: the format of all, a key of :data:`FORMATS`; what each file says when None.
        target: the format to write.
        fixed: the fixed image, for ``learn2reg``.
        moving: the moving image, for ``learn2reg``, where it lies on another grid than the fixed one.
        overwrite: replace files that are there.

    Returns:
        The written files.

    Raises:
        UserError: a file is missing, damaged or of another format, or a result is there already.
    """
    is_file = len(paths) == 1 and not output.is_dir() and output.suffix != ""
    if not is_file and output.name.endswith(_ALL_SUFFIXES):
        raise UserError(f"{output} is one file, but there are {len(paths)} fields: name a folder with --output.")
    targets: dict[Path, Path] = {}
    for path in paths:
        if path in targets:
            raise UserError(f"{path} is given twice: leave one out.")
        result = output if is_file else output / (_stem(path) + FORMATS[target].suffix)
        if result in targets.values():
            raise UserError(f"Two results would be called {result}: rename a field, or convert them one by one.")
        _of(result, target)
        targets[path] = result
    grids = [None if path is None else Grid.from_image(read_image(path)) for path in (fixed, moving)]
    check_outputs(targets.values(), paths, overwrite)
    with logging_redirect_tqdm():
        for path, result in tqdm(targets.items(), desc="Convert", unit="field"):
            write_as(read_as(path, source or format_of(path), *grids), result, target, grids[1])
    return list(targets.values())


def to_learn2reg(field: DisplacementField, moving_grid: Grid | None = None) -> NDArray[np.float32]:
    """Learn2Reg's array (X, Y, Z, 3): voxels along the array axes, added to the fixed index.

    Args:
        field: on the fixed image's grid.
        moving_grid: the moving image's grid; the fixed one when the images share it, as the challenge assumes.
    """
    moving = field.grid if moving_grid is None else moving_grid
    if moving == field.grid:
        # Where nothing moves the step is zero, and not a rounding error that leads just outside the image.
        return field.to_flow().transpose(3, 2, 1, 0)
    steps = np.empty_like(field.vectors)
    for part, grid in field.grid.slabs():
        target = moving.physical_to_index(grid.physical_points() + field.vectors[part])
        steps[part] = target - grid.indices() - (0, 0, part.start)
    return steps.transpose(2, 1, 0, 3)


def from_learn2reg(array: NDArray[Any], grid: Grid, moving_grid: Grid | None = None) -> DisplacementField:
    """The inverse of :func:`to_learn2reg`."""
    moving = grid if moving_grid is None else moving_grid
    steps = array.transpose(2, 1, 0, 3)
    vectors = np.empty((*grid.shape, 3), np.float32)
    for part, slab in grid.slabs():
        target = moving.index_to_physical(steps[part] + slab.indices() + (0, 0, part.start))
        vectors[part] = target - slab.physical_points()
    return DisplacementField(vectors, grid)


def _stem(path: Path) -> str:
    suffix = next((suffix for suffix in _ALL_SUFFIXES if path.name.endswith(suffix)), path.suffix)
    return path.name.removesuffix(suffix)


def _of(path: Path, format: str) -> Format:
    if format not in FORMATS:
        raise UserError(f"There is no field format '{format}': choose from {', '.join(FORMATS)}.")
    known = FORMATS[format]
    if not path.name.endswith(known.suffixes):
        raise UserError(f"{path} is no name for a field of format {format}: end it in {' or '.join(known.suffixes)}.")
    return known


def _read_itk(path: Path, fixed_grid: Grid | None, moving_grid: Grid | None) -> DisplacementField:
    return read_field(path)


def _write_itk(field: DisplacementField, path: Path, moving_grid: Grid | None) -> None:
    write_field(field, path)


def _read_ras(path: Path, fixed_grid: Grid | None, moving_grid: Grid | None) -> DisplacementField:
    """NIfTI files of five dimensions, or of four as NiBabel's users write them."""
    image = read_any(path, "displacement field")
    size, components = image.GetSize(), image.GetNumberOfComponentsPerPixel()
    shape = (*size, components) if components > 1 else size
    if len(shape) not in (4, 5) or shape[-1] != 3 or (len(shape) == 5 and shape[3] != 1):
        raise UserError(f"{path} holds numbers of size {times(shape)}, but a field has three components in mm (RAS).")
    marked = image.GetMetaData("intent_code") == str(_DISPLACEMENT_VECTOR)
    if marked and components == 1:
        # ITK takes its numbers for vectors and turns the wrong ones.
        raise UserError(
            f"{path} is marked as a field (intent {_DISPLACEMENT_VECTOR}) but has the size {times(shape)}: save it "
            f"with five dimensions ({times((*shape[:3], 1, 3))}), or with intent 0."
        )
    values = sitk.GetArrayFromImage(image)
    if values.dtype.kind != "f":
        raise UserError(f"{path} holds whole numbers of type {values.dtype}, and no displacements: give another file.")
    if components == 1:
        volume = image[(slice(None),) * 3 + (0,) * (len(size) - 3)]
        values = np.moveaxis(values.reshape(3, *volume.GetSize()[::-1]), 0, -1)
        grid = Grid.from_image(volume)
    else:
        grid = Grid.from_image(image)
        if marked:
            return DisplacementField(values.astype(np.float32, copy=False), grid)
    return DisplacementField(lps_to_ras(values.astype(np.float32)), grid)


def _write_ras(field: DisplacementField, path: Path, moving_grid: Grid | None) -> None:
    ras = DisplacementField(lps_to_ras(field.vectors), field.grid)
    with atomic_write(path) as temporary, tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
        plain = Path(folder) / "field.nii"
        write_with_itk(ras.to_image(), plain)
        with plain.open("r+b") as stream:
            stream.seek(_INTENT_AT)
            stream.write(struct.pack("=h", _DISPLACEMENT_VECTOR))
        if path.suffix == ".gz":
            with plain.open("rb") as source, gzip.open(temporary, "wb", compresslevel=6) as target:
                shutil.copyfileobj(source, target, 2**20)
        else:
            shutil.copyfile(plain, temporary)


def _read_learn2reg(path: Path, fixed_grid: Grid | None, moving_grid: Grid | None) -> DisplacementField:
    if fixed_grid is None:
        raise UserError(f"{path} is a Learn2Reg field, which keeps no geometry: give the fixed image (--fixed).")
    if path.suffix == ".npz":
        arrays = _load(path)
        if len(arrays) != 1:
            raise UserError(f"{path} holds the arrays {', '.join(arrays)}, but a Learn2Reg file has a single one.")
        array = next(iter(arrays.values()))
    else:
        image = read_any(path, "displacement field")
        if image.GetNumberOfComponentsPerPixel() != 1:
            raise UserError(
                f"{path} is a vector image, as ITK writes its fields (mm), and not Learn2Reg's array of voxels: read "
                "it as itk or nifti-ras."
            )
        array = sitk.GetArrayFromImage(image).T
    expected = (*fixed_grid.size, 3)
    if array.dtype.kind != "f":
        raise UserError(f"{path} holds numbers of type {array.dtype}, but displacements are floating-point numbers.")
    if array.shape != expected:
        raise UserError(f"{path} {_misfit(array.shape, fixed_grid)}.")
    if not np.isfinite(array).all():
        raise UserError(f"{path} holds NaN or infinite values: replace them by numbers.")
    return from_learn2reg(array, fixed_grid, moving_grid)


def _misfit(shape: tuple[int, ...], grid: Grid) -> str:
    says = (
        f"holds numbers of size {times(shape)}, but a Learn2Reg field of this fixed image has {times((*grid.size, 3))}"
    )
    if len(shape) == 4 and shape[0] == 3 != shape[-1]:
        return f"{says} (components last, at full resolution): bring the array into that order"
    return f"{says}: give the fixed image that it was made for"


def _write_learn2reg(field: DisplacementField, path: Path, moving_grid: Grid | None) -> None:
    """As ``displacements`` in an .npz file, or as a plain four-dimensional NIfTI file.

    The NIfTI file has the identity as its affine, as the challenge's evaluation reads the voxels alone.
    """
    array = to_learn2reg(field, moving_grid)
    if path.suffix == ".npz":
        with atomic_write(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, displacements=array)
        return
    volumes = [sitk.GetImageFromArray(np.ascontiguousarray(array[..., k].T)) for k in range(3)]
    write_image(sitk.JoinSeries(volumes), path)


def _is_nowhere(reader: sitk.ImageFileReader) -> bool:
    """Whether the file has the identity as its affine, as SimpleITK and NiBabel write it where none is given."""
    return (
        all(value == 0 for value in reader.GetOrigin()[:3])
        and all(value == 1 for value in reader.GetSpacing()[:3])
        and np.array_equal(np.abs(np.reshape(reader.GetDirection(), (4, 4))), np.eye(4))
    )


def _read_npz(path: Path, fixed_grid: Grid | None, moving_grid: Grid | None) -> DisplacementField:
    arrays = _load(path)
    lacking = next((key for key in _NPZ_KEYS if key not in arrays), None)
    if lacking is not None:
        raise UserError(f"{path} has no array '{lacking}': a field needs {', '.join(_NPZ_KEYS)}.")
    try:
        grid = Grid.from_dict({key: arrays[key].tolist() for key in _NPZ_KEYS[1:]})
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} holds a grid that is none ({error}): write it anew.") from error
    vectors = arrays["vectors"]
    if vectors.dtype.kind != "f":
        raise UserError(f"{path} holds vectors of type {vectors.dtype}, but displacements are floating-point numbers.")
    if vectors.shape != (*grid.shape, 3):
        raise UserError(
            f"{path} holds vectors of size {times(vectors.shape)}, but its grid needs {times((*grid.shape, 3))} (z, y, "
            "x, components)."
        )
    if not np.isfinite(vectors).all():
        raise UserError(f"{path} holds NaN or infinite values: replace them by numbers.")
    return DisplacementField(vectors.astype(np.float32, copy=False), grid)


def _write_npz(field: DisplacementField, path: Path, moving_grid: Grid | None) -> None:
    """``vectors`` (z, y, x, 3) with components x, y, z in mm, LPS, and the grid as in :class:`Grid`."""
    grid: dict[str, Any] = {key: np.array(value) for key, value in field.grid.to_dict().items()}
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, vectors=field.vectors, **grid)


def _load(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file; never objects, which would run code."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
    except FileNotFoundError:
        raise UserError(f"The displacement field {path} does not exist: check its name.") from None
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise UserError(f"{path} is damaged or no .npz file: write it anew.") from error
        raise UserError(f"{path} holds Python objects, which are not loaded: save its arrays as numbers.") from error
    except (OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged or no .npz file: write it anew.") from error
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise UserError(f"{path} is damaged or no .npz file: write it anew.")
    return arrays


FORMATS: dict[str, Format] = {
    "itk": Format(".nii.gz", (*NIFTI, ".nrrd", ".mha"), _read_itk, _write_itk),
    "learn2reg": Format(".nii.gz", (*NIFTI, ".npz"), _read_learn2reg, _write_learn2reg),
    "nifti-ras": Format(".nii.gz", NIFTI, _read_ras, _write_ras),
    "npz": Format(".npz", (".npz",), _read_npz, _write_npz),
}
_ALL_SUFFIXES = tuple(suffix for known in FORMATS.values() for suffix in known.suffixes)
