"""The formats of displacement fields: vectors in mm (ITK's LPS, NIfTI's RAS), Learn2Reg's voxel steps, and .npz."""

import gzip
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from llmreg.errors import BadArgument, BadTransform, MissingFile, UnclearField
from llmreg.files import atomic_write
from llmreg.geometry.field import DisplacementField, from_learn2reg, to_learn2reg
from llmreg.geometry.grid import Grid, image_to_array, lps_to_ras, ras_to_lps
from llmreg.images.formats import FIELD_FORMATS, FieldFormat
from llmreg.images.image_files import format_sizes, read_stored, write_image
from llmreg.images.itk import DISPLACEMENT_VECTOR, NIFTI_ENDINGS, write_with_itk


def _read_finite(path: Path) -> sitk.Image:
    """The image in a field's file, as it is stored. Raises BadTransform when it holds NaN or infinite values."""
    image = read_stored(path, "a displacement field")
    values = sitk.GetArrayViewFromImage(image)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise BadTransform(path, "holds NaN or infinite values", "replace them by numbers")
    return image


def _read_itk(path: Path, fixed_grid: Grid | None, moving_grid: Grid | None) -> DisplacementField:
    image = _read_finite(path)
    kind, components = image.GetPixelIDTypeAsString(), image.GetNumberOfComponentsPerPixel()
    if image.GetDimension() != 3 or components != 3:
        size = format_sizes((*image.GetSize(), *([components] if components > 1 else [])))
        raise UnclearField(
            path,
            f"holds numbers of size {size} instead of a 3-D field of vectors as ITK has them",
            "convert it if it is a field of another format",
        )
    if "float" not in kind:
        raise BadTransform(path, f"holds a {kind}, as colour images do, and no displacements", "give another file")
    return DisplacementField.from_image(image)


def _write_itk(field: DisplacementField, path: Path, moving_grid: Grid | None) -> None:
    """Write float32 vectors, mm, LPS; NIfTI files get dimension 5 and intent 1007."""
    write_image(field.to_image(), path)


def _read_ras(path: Path, fixed_grid: Grid | None, moving_grid: Grid | None) -> DisplacementField:
    """Read NIfTI files of five dimensions, or of four as NiBabel's users write them."""
    image = _read_finite(path)
    size, components = image.GetSize(), image.GetNumberOfComponentsPerPixel()
    shape = (*size, components) if components > 1 else size
    if len(shape) not in (4, 5) or shape[-1] != 3 or (len(shape) == 5 and shape[3] != 1):
        raise BadTransform(
            path, f"holds numbers of size {format_sizes(shape)}, but a field has three components in mm (RAS)"
        )
    has_intent = image.GetMetaData("intent_code") == str(DISPLACEMENT_VECTOR)
    if has_intent and components == 1:
        # ITK takes its numbers for vectors and changes the sign of the wrong ones.
        raise BadTransform(
            path,
            f"is marked as a field (intent {DISPLACEMENT_VECTOR}) but has the size {format_sizes(shape)}",
            f"save it with five dimensions ({format_sizes((*shape[:3], 1, 3))}), or with intent 0",
        )
    values = image_to_array(image)
    if values.dtype.kind != "f":
        raise BadTransform(
            path, f"holds whole numbers of type {values.dtype}, and no displacements", "give another file"
        )
    if components == 1:
        values = np.moveaxis(values.reshape(3, *size[2::-1]), 0, -1)
        image = image[(slice(None),) * 3 + (0,) * (len(size) - 3)]
    vectors = values.astype(np.float32, copy=False)
    # ITK has turned vectors with the intent to LPS.
    return DisplacementField(vectors if has_intent else ras_to_lps(vectors), Grid.from_image(image))


def _write_ras(field: DisplacementField, path: Path, moving_grid: Grid | None) -> None:
    ras = DisplacementField(lps_to_ras(field.vectors), field.grid)
    with atomic_write(path) as temporary, tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
        uncompressed = Path(folder) / "field.nii"
        write_with_itk(ras.to_image(), uncompressed)
        content = bytearray(uncompressed.read_bytes())
        # nifti1.h: intent_code stands at byte 68.
        struct.pack_into("=h", content, 68, DISPLACEMENT_VECTOR)
        temporary.write_bytes(gzip.compress(content, compresslevel=6) if path.suffix == ".gz" else content)


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file; Python objects, which could run code, are refused.

    Raises:
        MissingFile: there is no such file.
        BadTransform: the file is no .npz file, or holds Python objects.
    """
    damaged = BadTransform(path, "is damaged or no .npz file", "save the field again")
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
    except FileNotFoundError:
        raise MissingFile(path, "check its name") from None
    except (ValueError, OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise BadTransform(
                path, "holds Python objects, which are not loaded", "save its arrays as numbers"
            ) from error
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
        image = read_stored(path, "a displacement field")
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
    write_image(sitk.GetImageFromArray(np.ascontiguousarray(array.T), isVector=False), path)


def _read_npz(path: Path, fixed_grid: Grid | None, moving_grid: Grid | None) -> DisplacementField:
    arrays = load_arrays(path)
    try:
        vectors = arrays.pop("vectors")
        grid = Grid.from_dict({key: array.tolist() for key, array in arrays.items()})
    except KeyError as error:
        raise BadTransform(
            path, f"has no array '{error.args[0]}'", "a field needs vectors, size, spacing, origin, direction"
        ) from error
    except (TypeError, ValueError) as error:
        raise BadTransform(
            path, f"holds no valid grid ({error})", "correct its size, spacing, origin and direction"
        ) from error
    _check_numbers(path, vectors, (*grid.shape, 3), "its grid needs", "vectors are (z, y, x, components)")
    return DisplacementField(vectors.astype(np.float32, copy=False), grid)


def _write_npz(field: DisplacementField, path: Path, moving_grid: Grid | None) -> None:
    """Write ``vectors`` (z, y, x, 3) with components x, y, z in mm, LPS, and the grid as in :class:`Grid`."""
    _write_arrays(path, vectors=field.vectors, **{key: np.array(value) for key, value in field.grid.to_dict().items()})


def _write_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    with atomic_write(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]


FIELD_FORMATS.register("itk", FieldFormat((*NIFTI_ENDINGS, ".nrrd", ".mha"), _read_itk, _write_itk))
FIELD_FORMATS.register("nifti-ras", FieldFormat(NIFTI_ENDINGS, _read_ras, _write_ras))
FIELD_FORMATS.register("learn2reg", FieldFormat((*NIFTI_ENDINGS, ".npz"), _read_learn2reg, _write_learn2reg))
FIELD_FORMATS.register("npz", FieldFormat((".npz",), _read_npz, _write_npz))
