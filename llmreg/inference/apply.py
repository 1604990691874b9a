"""Fields and affine transforms, applied to images, label maps and landmarks in files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from llmreg.errors import UserError
from llmreg.files import check_outputs
from llmreg.geometry.chain import Step, follow, lookup, reversed_steps, steps_of
from llmreg.geometry.field import DisplacementField, resample_image
from llmreg.geometry.formats import format_of, read_as
from llmreg.geometry.grid import Grid
from llmreg.geometry.io import read_image, read_transform, write_image
from llmreg.geometry.labels import resample_labels
from llmreg.geometry.points import SLICER, Convention, read_points, write_points
from llmreg.inference.pair_inputs import case_name

log = logging.getLogger(__name__)

Interpolation = Literal["linear", "bspline", "nearest", "label"]
INTERPOLATIONS: tuple[Interpolation, ...] = ("linear", "bspline", "nearest", "label")

FIELDS = (".nii.gz", ".nii", ".nrrd", ".mha", ".npz")
IMAGES = (".nii.gz", ".nii", ".nrrd", ".mha")
POINTS = (".csv", ".fcsv", SLICER)
# An image of whole numbers is a label map when so many of its voxels that are not 0 equal their neighbour.
_FLAT = 0.7
_SAMPLES = 24


@dataclass(frozen=True)
class Inputs:
    """What is transformed: paths of images, of label maps and of landmarks."""

    images: tuple[Path, ...] = ()
    labels: tuple[Path, ...] = ()
    points: tuple[Path, ...] = ()

    @property
    def all(self) -> tuple[Path, ...]:
        return self.images + self.labels + self.points


@dataclass(frozen=True)
class How:
    """How it is transformed.

    Attributes:
        interpolation: of images, and of label maps where it is ``nearest`` or ``label``; None for linear images and
            nearest labels.
        like: an image on whose grid the results lie; that of the chain's first field when None.
        default: value of images where the chain leads outside them.
        convention: the coordinates of landmarks.
        fixed: image whose voxels landmarks count (``voxel``); the first field's grid when None.
        moving: the same for the moving image.
        inverse: go from the moving to the fixed image.
        overwrite: replace files that are there.
    """

    interpolation: Interpolation | None = None
    like: Path | None = None
    default: float = 0.0
    convention: Convention = "lps"
    fixed: Path | None = None
    moving: Path | None = None
    inverse: bool = False
    overwrite: bool = False


def apply(transforms: Sequence[Path], inputs: Inputs, output: Path, how: How) -> list[Path]:
    """Transform files.

    Args:
        transforms: fields and ITK transforms in the order in which points of the fixed image go through them.
        inputs: images and label maps lie where the chain ends and are warped back to where it begins; landmarks go
            from its beginning to its end. With ``how.inverse`` the chain is turned about.
        output: the file for a single input; else, or where it has no suffix, a folder.
        how: everything else.

    Returns:
        The written files, in the order of images, labels and points.

    Raises:
        UserError: something is missing or damaged, a result is there already, or what was asked for makes no sense.
    """
    if not inputs.all:
        raise UserError("There is nothing to transform: give images (-i), label maps (--labels) or points (--points).")
    if how.interpolation in ("linear", "bspline") and not inputs.images and inputs.labels:
        raise UserError(
            f"--interpolation {how.interpolation} would mix labels into others: choose nearest or label for --labels."
        )
    targets = _targets(inputs, output)
    check_outputs(targets.values(), (*inputs.all, *transforms), how.overwrite)
    steps = read_chain(transforms)
    start = steps[0].grid if isinstance(steps[0], DisplacementField) else None
    if how.inverse:
        try:
            steps = reversed_steps(steps)
        except ValueError as error:
            raise UserError(f"--inverse is not possible ({error}): register the images the other way.") from error
    grid = _reference(how, start) if inputs.images or inputs.labels else None
    with logging_redirect_tqdm(), tqdm(total=len(targets), desc="Apply", unit="file") as progress:
        if inputs.points:
            # First, since they take no time and show whether the direction is right.
            ends = (_grid_of(how.fixed) or start, _grid_of(how.moving))
            for path in inputs.points:
                _apply_to_points(path, targets[path], steps, ends[::-1] if how.inverse else ends, how)
                progress.update()
        if grid is not None:
            through = lookup(steps, grid)
            middle = follow(grid.points_inside(_SAMPLES), steps)[0]
            for path in (*inputs.images, *inputs.labels):
                image = read_image(path)
                if not Grid.from_image(image).contains(middle).any():
                    log.warning(
                        "%s: the transforms lead past it everywhere, so that the result is empty: check which image "
                        "they belong to, their order, and whether --inverse is meant.",
                        path,
                    )
                write_image(_applied(image, path, through, grid, how, path in inputs.labels), targets[path])
                progress.update()
    return list(targets.values())


def read_chain(paths: Sequence[Path]) -> tuple[Step, ...]:
    """The steps of several files, one after the other. Raises UserError when one is no transform."""
    return tuple(step for path in paths for step in _read_steps(Path(path)))


def _read_steps(path: Path) -> tuple[Step, ...]:
    if not path.is_file():
        raise UserError(f"The transform {path} does not exist: check its name.")
    if not path.name.endswith(FIELDS):
        return steps_of(read_transform(path))
    format = format_of(path)
    if format == "learn2reg":
        raise UserError(f"{path} is a Learn2Reg field, which keeps no geometry: convert it with llmreg_convert_field.")
    return (read_as(path, format),)


def _reference(how: How, start: Grid | None) -> Grid:
    if how.like is not None:
        return Grid.from_image(read_image(how.like))
    if how.inverse:
        raise UserError(
            "--inverse warps onto the moving image's grid, which no transform knows: name the moving image with --like."
        )
    if start is None:
        raise UserError(
            "The first transform is no displacement field and has no grid: name the image whose grid the result gets "
            "with --like."
        )
    return start


def _grid_of(path: Path | None) -> Grid | None:
    return None if path is None else Grid.from_image(read_image(path))


def _targets(inputs: Inputs, output: Path) -> dict[Path, Path]:
    """Where the result of each input goes."""
    several = len(inputs.all) > 1
    is_file = not output.is_dir() and (output.name.endswith((*IMAGES, *POINTS)) or (output.suffix and not several))
    if is_file and several:
        raise UserError(f"{output} is one file, but there are {len(inputs.all)} inputs: name a folder with --output.")
    found: dict[Path, Path] = {}
    for path in inputs.all:
        if not path.is_file():
            raise UserError(f"The file {path} does not exist: check its name.")
        if path in found:
            raise UserError(f"{path} is given twice: leave one out.")
        kinds = (_kind(path),) if path in inputs.points else IMAGES
        name = path.name if path.name.endswith(kinds) else case_name(path) + kinds[0]
        target = output if is_file else output / name
        if not target.name.endswith(kinds):
            raise UserError(f"{target} is no name for what becomes of {path}: end it in {' or '.join(kinds)}.")
        if target in found.values():
            raise UserError(f"Two results would be called {target}: rename a file, or transform them one by one.")
        found[path] = target
    return found


def _kind(path: Path) -> str:
    return next((suffix for suffix in POINTS if path.name.endswith(suffix)), ".csv")


def _apply_to_points(
    path: Path, target: Path, steps: Sequence[Step], ends: tuple[Grid | None, Grid | None], how: How
) -> None:
    first, last = ends
    if how.convention == "voxel" and _kind(path) == ".csv":
        flags = ("--moving", "--fixed") if how.inverse else ("--fixed", "--moving")
        for grid, flag, role in zip(ends, flags, ("counts", "shall count"), strict=True):
            if grid is None:
                raise UserError(f"{path} {role} voxels, but of which image: name it with {flag}.")
    table, points = read_points(path, how.convention, first)
    moved, known = follow(points, steps)
    lost = int((~known).sum())
    if lost and how.inverse:
        log.warning(
            "%s: %d of %d points lie where the field has no inverse, beyond what it reaches or in a fold: check them, "
            "--convention, and whether --inverse is meant.",
            path,
            lost,
            len(points),
        )
    elif lost:
        log.warning(
            "%s: %d of %d points lie outside the field's grid, where it moves nothing: check --convention, and whether "
            "they belong to the fixed image (points of the moving image need --inverse).",
            path,
            lost,
            len(points),
        )
    write_points(table, moved, target, last)


def _applied(
    image: sitk.Image, path: Path, through: sitk.Transform | DisplacementField, grid: Grid, how: How, is_label: bool
) -> sitk.Image:
    if is_label or how.interpolation == "label":
        return resample_labels(image, grid, through, "linear" if how.interpolation == "label" else "nearest")
    method = how.interpolation or "linear"
    values = sitk.GetArrayViewFromImage(image)
    if method != "nearest" and _is_label_map(values):
        log.warning(
            "%s looks like a label map, whose labels --interpolation %s mixes: give it with --labels.", path, method
        )
    if values.dtype.kind in "iu":
        limits = np.iinfo(values.dtype)
        if not (limits.min <= how.default <= limits.max and float(how.default).is_integer()):
            raise UserError(
                f"--default {how.default:g} is no {values.dtype}, as the values of {path} are: give another."
            )
    return resample_image(image, grid, through, method, how.default)


def _is_label_map(values: NDArray[Any]) -> bool:
    if values.dtype.kind not in "iu":
        return False
    inside = values[..., :-1] != 0
    return bool(inside.any() and (values[..., :-1] == values[..., 1:])[inside].mean() >= _FLAT)
