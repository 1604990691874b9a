"""Fields and affine transforms, applied to images, label maps and landmarks in files."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from llmreg.arguments import PathLike, PathsLike, check_choice, to_paths
from llmreg.errors import BadArgument, MissingFile, UnclearField, UserError
from llmreg.files import check_outputs
from llmreg.geometry.field import DisplacementField
from llmreg.geometry.grid import Grid
from llmreg.geometry.points import Step, invert_steps, map_points, merge_steps, split_transform
from llmreg.geometry.resampling import resample_image, resample_labels
from llmreg.images.fields import detect_field_format, read_field, read_transform
from llmreg.images.formats import field_endings, image_endings, strip_ending
from llmreg.images.image_files import read_image, write_image
from llmreg.images.landmarks import LANDMARK_ENDINGS, Convention, read_landmarks, write_landmarks

log = logging.getLogger(__name__)

Interpolation = Literal["linear", "bspline", "nearest", "label"]

# An image of whole numbers counts as a label map when this share of its voxels above 0 equal their neighbour.
_LABEL_MAP_SHARE = 0.7
# Points along each axis by which is checked that the chain leads into an image at all.
_SAMPLES = 24


@dataclass(frozen=True)
class ApplyInputs:
    """The files that are transformed: images, label maps and landmarks, of each kind one or several.

    Raises:
        BadArgument: something is no path.
    """

    images: tuple[Path, ...]
    labels: tuple[Path, ...]
    landmarks: tuple[Path, ...]

    def __init__(self, images: PathsLike = (), labels: PathsLike = (), landmarks: PathsLike = ()) -> None:
        for kind, files in (("images", images), ("labels", labels), ("landmarks", landmarks)):
            # The instance is frozen, to its own methods as well.
            object.__setattr__(self, kind, to_paths(kind, files))

    @property
    def all(self) -> tuple[Path, ...]:
        """All of them."""
        return self.images + self.labels + self.landmarks


@dataclass(frozen=True)
class ApplyOptions:
    """How files are transformed.

    Attributes:
        interpolation: of images, and of label maps where it is ``nearest`` or ``label``; None for linear images and
            nearest labels.
        like: an image whose grid the results get; that of the chain's first field when None.
        default: value of images where the chain leads outside them.
        convention: the coordinates of landmarks.
        fixed: image whose voxels landmarks count (``voxel``); the first field's grid when None.
        moving: the same for the moving image.
        inverse: go from the moving to the fixed image.
        overwrite: replace files that exist.

    Raises:
        UnknownName: there is no such interpolation or convention.
    """

    interpolation: Interpolation | None = None
    like: PathLike | None = None
    default: float = 0.0
    convention: Convention = "lps"
    fixed: PathLike | None = None
    moving: PathLike | None = None
    inverse: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_choice("interpolation", self.interpolation, get_args(Interpolation))
        check_choice("convention", self.convention, get_args(Convention))


def apply(
    transforms: PathsLike, inputs: ApplyInputs, output: PathLike, options: ApplyOptions | None = None
) -> list[Path]:
    """Transform files.

    Args:
        transforms: fields and ITK transforms in the order in which points of the fixed image go through them.
        inputs: images and label maps lie where the chain ends, and are warped back to where it begins; landmarks go
            from its beginning to its end. With ``options.inverse`` it is the other way.
        output: the file for a single input; else, or where it has no suffix, a folder.
        options: everything else.

    Returns:
        The written files, in the order of images, labels and landmarks.

    Raises:
        BadArgument: arguments are missing or do not fit each other.
        UserError: a file is missing or damaged, or a result exists already.
    """
    options, output, transforms = options or ApplyOptions(), Path(output), to_paths("transforms", transforms)
    if not transforms:
        raise BadArgument("transforms", "There is no transform: give at least one field or affine transform.")
    if not isinstance(inputs, ApplyInputs) or not inputs.all:
        raise BadArgument("inputs", "There is nothing to transform: give images, label maps or landmarks.")
    if options.interpolation in ("linear", "bspline") and not inputs.images and inputs.labels:
        raise BadArgument(
            "interpolation",
            f"'{options.interpolation}' would mix labels into others: choose nearest or label for label maps.",
        )
    targets = _name_targets(inputs, output)
    check_outputs(targets.values(), (*inputs.all, *transforms), overwrite=options.overwrite)
    steps = read_chain(transforms)
    start = steps[0].grid if isinstance(steps[0], DisplacementField) else None
    if options.inverse:
        try:
            steps = invert_steps(steps)
        except ValueError as error:
            raise BadArgument(
                "inverse", f"The transforms cannot be inverted ({error}): register the images the other way."
            ) from error
    grid = _choose_grid(options, start) if inputs.images or inputs.labels else None
    with logging_redirect_tqdm(), tqdm(total=len(targets), desc="Apply", unit="file") as progress:
        # Landmarks come first, since they take no time and show whether the direction is right.
        if inputs.landmarks:
            fixed, moving = (
                None if path is None else Grid.from_image(read_image(Path(path)))
                for path in (options.fixed, options.moving)
            )
            ends = (moving, fixed or start) if options.inverse else (fixed or start, moving)
            for path in inputs.landmarks:
                _transform_points(path, targets[path], steps, ends, options)
                progress.update()
        if grid is not None:
            transform = merge_steps(steps, grid)
            mapped, _ = map_points(grid.points_inside(_SAMPLES), steps)
            for path in (*inputs.images, *inputs.labels):
                image = read_image(path)
                if not Grid.from_image(image).contains(mapped).any():
                    log.warning(
                        "%s: the transforms lead outside this image everywhere, so the result is empty: check which "
                        "image they belong to, their order, and whether the inverse is meant.",
                        path,
                    )
                write_image(_warp(image, path, transform, grid, options, is_label=path in inputs.labels), targets[path])
                progress.update()
    return list(targets.values())


def read_chain(paths: Sequence[Path]) -> tuple[Step, ...]:
    """Read the steps of several files, one after the other. Raises UserError when one is no transform."""
    steps: list[Step] = []
    for path in map(Path, paths):
        if not path.is_file():
            raise MissingFile(path, "check the transform's name")
        if not path.name.endswith(field_endings()):
            steps += split_transform(read_transform(path))
        elif (field_format := detect_field_format(path)) != "learn2reg":
            steps.append(read_field(path, field_format))
        else:
            raise UnclearField(path, "is a Learn2Reg field, which keeps no geometry", "convert it to another format")
    return tuple(steps)


def _choose_grid(options: ApplyOptions, start: Grid | None) -> Grid:
    if options.like is not None:
        return Grid.from_image(read_image(Path(options.like)))
    if options.inverse:
        raise BadArgument(
            "like", "Images are warped onto the moving image's grid, which no transform holds: name the moving image."
        )
    if start is None:
        raise BadArgument(
            "like",
            "The first transform is no displacement field and has no grid: name an image with the result's grid.",
        )
    return start


def _name_targets(inputs: ApplyInputs, output: Path) -> dict[Path, Path]:
    endings = (*image_endings(writable=True), *LANDMARK_ENDINGS)
    has_several = len(inputs.all) > 1
    is_file = not output.is_dir() and (output.name.endswith(endings) or (output.suffix and not has_several))
    if is_file and has_several:
        raise BadArgument("output", f"{output} is one file, but there are {len(inputs.all)} inputs: name a folder.")
    targets: dict[Path, Path] = {}
    for path in inputs.all:
        if not path.is_file():
            raise MissingFile(path, "check its name")
        if path in targets:
            raise UserError(f"{path} is given twice: leave one out.")
        fitting = (_landmark_ending(path),) if path in inputs.landmarks else image_endings(writable=True)
        name = path.name if path.name.endswith(fitting) else strip_ending(path) + fitting[0]
        target = output if is_file else output / name
        if not target.name.endswith(fitting):
            raise BadArgument(
                "output", f"{target} is no name for the result of {path}: end it in {' or '.join(fitting)}."
            )
        if target in targets.values():
            raise UserError(f"Two results would be called {target}: rename a file, or transform them one by one.")
        targets[path] = target
    return targets


def _landmark_ending(path: Path) -> str:
    return next((ending for ending in LANDMARK_ENDINGS if path.name.endswith(ending)), ".csv")


def _transform_points(
    path: Path,
    target: Path,
    steps: Sequence[Step],
    ends: tuple[Grid | None, Grid | None],
    options: ApplyOptions,
) -> None:
    """Transform a file of landmarks. ``ends``: the grids of the images at both ends of the chain, where known."""
    if options.convention == "voxel" and _landmark_ending(path) == ".csv":
        roles = ("moving", "fixed") if options.inverse else ("fixed", "moving")
        for grid, role in zip(ends, roles, strict=True):
            if grid is None:
                raise BadArgument(role, f"{path} is in voxels of the {role} image, whose grid is unknown: name it.")
    table, points = read_landmarks(path, options.convention, ends[0])
    mapped, is_defined = map_points(points, steps)
    if not is_defined.all():
        reason = (
            "where the field has no inverse, because it does not lead there or because it folds: check them, their "
            "convention, and whether the inverse is meant"
            if options.inverse
            else "outside the field's grid, where it moves nothing: check their convention, and whether they belong to "
            "the fixed image (landmarks of the moving image need the inverse)"
        )
        log.warning("%s: %d of %d landmarks lie %s.", path, (~is_defined).sum(), len(points), reason)
    write_landmarks(table, mapped, target, ends[1])


def _warp(
    image: sitk.Image,
    path: Path,
    transform: sitk.Transform | DisplacementField,
    grid: Grid,
    options: ApplyOptions,
    *,
    is_label: bool,
) -> sitk.Image:
    if is_label or options.interpolation == "label":
        return resample_labels(image, grid, transform, "linear" if options.interpolation == "label" else "nearest")
    method = options.interpolation or "linear"
    values = sitk.GetArrayViewFromImage(image)
    if values.dtype.kind in "iu":
        if method != "nearest" and _is_label_map(values):
            log.warning(
                "%s looks like a label map, whose labels %s interpolation mixes: give it as a label map.", path, method
            )
        limits = np.iinfo(values.dtype)
        if not (limits.min <= options.default <= limits.max and float(options.default).is_integer()):
            raise BadArgument(
                "default",
                f"The default {options.default:g} is no {values.dtype}, as the values of {path} are: give another.",
            )
    return resample_image(image, grid, transform, method, options.default)


def _is_label_map(values: NDArray[np.integer]) -> bool:
    inside = values[..., :-1] != 0
    return bool(inside.any() and (values[..., :-1] == values[..., 1:])[inside].mean() >= _LABEL_MAP_SHARE)
