"""Displacement fields as vector images in mm: ITK's (LPS) and NIfTI's (RAS)."""

from __future__ import annotations

import gzip
import shutil
import struct
import tempfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from llmreg.errors import BadTransform, UnclearField
from llmreg.files import atomic_write
from llmreg.geometry.arrays import image_to_array, lps_to_ras, ras_to_lps
from llmreg.geometry.field import DisplacementField
from llmreg.geometry.grid import Grid
from llmreg.images.checks import format_sizes
from llmreg.images.field_formats import FIELD_FORMATS, FieldFormat
from llmreg.images.image_files import read_stored, write_image
from llmreg.images.itk import write_with_itk
from llmreg.images.nifti import DISPLACEMENT_VECTOR, NIFTI_ENDINGS

# nifti1.h: the position of intent_code.
_INTENT_OFFSET = 68


def read_finite(path: Path) -> sitk.Image:
    """The image in a field's file, as it is stored. Raises BadTransform when it holds NaN or infinite values."""
    image = read_stored(path, "a displacement field")
    values = sitk.GetArrayViewFromImage(image)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise BadTransform(path, "holds NaN or infinite values", "replace them by numbers")
    return image


def _read_itk(path: Path, fixed_grid: Grid | None, moving_grid: Grid | None) -> DisplacementField:
    image = read_finite(path)
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
    image = read_finite(path)
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
        volume = image[(slice(None),) * 3 + (0,) * (len(size) - 3)]
        values = np.moveaxis(values.reshape(3, *volume.GetSize()[::-1]), 0, -1)
        grid = Grid.from_image(volume)
    else:
        grid = Grid.from_image(image)
        if has_intent:
            return DisplacementField(values.astype(np.float32, copy=False), grid)
    return DisplacementField(ras_to_lps(values.astype(np.float32)), grid)


def _write_ras(field: DisplacementField, path: Path, moving_grid: Grid | None) -> None:
    ras = DisplacementField(lps_to_ras(field.vectors), field.grid)
    with atomic_write(path) as temporary, tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
        uncompressed = Path(folder) / "field.nii"
        write_with_itk(ras.to_image(), uncompressed)
        with uncompressed.open("r+b") as stream:
            stream.seek(_INTENT_OFFSET)
            stream.write(struct.pack("=h", DISPLACEMENT_VECTOR))
        if path.suffix == ".gz":
            with uncompressed.open("rb") as source, gzip.open(temporary, "wb", compresslevel=6) as target:
                shutil.copyfileobj(source, target, 2**20)
        else:
            shutil.copyfile(uncompressed, temporary)


FIELD_FORMATS.register("itk", FieldFormat((*NIFTI_ENDINGS, ".nrrd", ".mha"), _read_itk, _write_itk))
FIELD_FORMATS.register("nifti-ras", FieldFormat(NIFTI_ENDINGS, _read_ras, _write_ras))
