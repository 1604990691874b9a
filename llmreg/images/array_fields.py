"""Displacement fields as plain arrays: Learn2Reg's voxel steps, and NumPy's .npz with a grid."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from llmreg.errors import BadArgument, BadTransform, MissingFile
from llmreg.files import atomic_write
from llmreg.geometry.arrays import image_to_array
from llmreg.geometry.field import DisplacementField
from llmreg.geometry.grid import Grid
from llmreg.geometry.learn2reg import from_learn2reg, to_learn2reg
from llmreg.images.checks import format_sizes
from llmreg.images.field_formats import FIELD_FORMATS, FieldFormat
from llmreg.images.image_files import write_image
from llmreg.images.nifti import NIFTI_ENDINGS
from llmreg.images.vector_fields import read_finite

_NPZ_KEYS = ("vectors", "size", "spacing", "origin", "direction")


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file; Python objects, which could run code, are refused.

    Raises:
        MissingFile: there is no such file.
        BadTransform: the file is no .npz file, or holds Python objects.
    """
    damaged = BadTransform(path, "is damaged or no .npz file", "write it anew")
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
    except FileNotFoundError:
        raise MissingFile(path, "check its name") from None
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise damaged from error
        raise BadTransform(path, "holds Python objects, which are not loaded", "save its arrays as numbers") from error
    except (OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise damaged from error
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise damaged
    return arrays


def _check_numbers(path: Path, array: NDArray[Any], shape: tuple[int, ...], misfit: str, remedy: str) -> None:
    """Raise BadTransform where an array holds no finite floating-point numbers, or its shape is another."""
    if array.dtype.kind != "f":
        raise BadTransform(path, f"holds numbers of type {array.dtype}", "displacements must be floating-point numbers")
    if array.shape != shape:
        raise BadTransform(
            path, f"holds numbers of size {format_sizes(array.shape)}, but {misfit} {format_sizes(shape)}", remedy
        )
    if not np.isfinite(array).all():
        raise BadTransform(path, "holds NaN or infinite values", "replace them by numbers")


def _read_learn2reg(path: Path, fixed_grid: Grid | None, moving_grid: Grid | None) -> DisplacementField:
    if fixed_grid is None:
        raise BadArgument(
            "fixed", f"{path} is a Learn2Reg field, which keeps no geometry: give the fixed image as well."
        )
    if path.suffix == ".npz":
        arrays = load_arrays(path)
        if len(arrays) != 1:
            raise BadTransform(path, f"holds the arrays {', '.join(arrays)}, but a Learn2Reg file has a single one")
        array = next(iter(arrays.values()))
    else:
        image = read_finite(path)
        if image.GetNumberOfComponentsPerPixel() != 1:
            raise BadTransform(
                path,
                "is a vector image, as ITK writes its fields (mm), and not Learn2Reg's array of voxels",
                "read it as itk or nifti-ras",
            )
        array = image_to_array(image).T
    is_components_first = array.ndim == 4 and array.shape[0] == 3 != array.shape[-1]
    _check_numbers(
        path,
        array,
        (*fixed_grid.size, 3),
        "a Learn2Reg field of this fixed image has",
        "bring the array into that order (components last, at full resolution)"
        if is_components_first
        else "give the fixed image that it was made for",
    )
    return from_learn2reg(array, fixed_grid, moving_grid)


def _write_learn2reg(field: DisplacementField, path: Path, moving_grid: Grid | None) -> None:
    """Write ``displacements`` in an .npz file, or a plain four-dimensional NIfTI file.

    The NIfTI file has the identity as its affine, since the challenge's evaluation reads the voxels alone.
    """
    array = to_learn2reg(field, moving_grid)
    if path.suffix == ".npz":
        _write_arrays(path, displacements=array)
        return
    volumes = [sitk.GetImageFromArray(np.ascontiguousarray(array[..., k].T)) for k in range(3)]
    write_image(sitk.JoinSeries(volumes), path)


def _read_npz(path: Path, fixed_grid: Grid | None, moving_grid: Grid | None) -> DisplacementField:
    arrays = load_arrays(path)
    for key in _NPZ_KEYS:
        if key not in arrays:
            raise BadTransform(path, f"has no array '{key}'", f"a field needs {', '.join(_NPZ_KEYS)}")
    try:
        grid = Grid.from_dict({key: arrays[key].tolist() for key in _NPZ_KEYS[1:]})
    except (TypeError, ValueError) as error:
        raise BadTransform(path, f"holds a grid that is none ({error})", "write it anew") from error
    vectors = arrays["vectors"]
    _check_numbers(path, vectors, (*grid.shape, 3), "its grid needs", "vectors are (z, y, x, components)")
    return DisplacementField(vectors.astype(np.float32, copy=False), grid)


def _write_npz(field: DisplacementField, path: Path, moving_grid: Grid | None) -> None:
    """Write ``vectors`` (z, y, x, 3) with components x, y, z in mm, LPS, and the grid as in :class:`Grid`."""
    _write_arrays(path, vectors=field.vectors, **{key: np.array(value) for key, value in field.grid.to_dict().items()})


def _write_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


FIELD_FORMATS.register("learn2reg", FieldFormat((*NIFTI_ENDINGS, ".npz"), _read_learn2reg, _write_learn2reg))
FIELD_FORMATS.register("npz", FieldFormat((".npz",), _read_npz, _write_npz))
