"""A case's image, label map and mask: read, and checked against each other and the dataset's label table."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from llmreg.data.dataset import Case, Dataset
from llmreg.errors import BadImage, MissingFile, UserError
from llmreg.files import image_digest
from llmreg.geometry.grid import Grid, image_to_array
from llmreg.images.image_files import check_values, format_sizes, read_image, warn_once
from llmreg.workers import map_in_processes

log = logging.getLogger(__name__)

Sources = dict[str, str | list[int]]


class BadCases(UserError):
    """Several images, label maps or masks of a dataset that cannot be used.

    Attributes:
        problems: the error of each.
    """

    def __init__(self, problems: Sequence[UserError]) -> None:
        super().__init__(f"{str(problems[0]).removesuffix('.')} (and {len(problems) - 1} more, see the log).")
        self.problems = tuple(problems)


@dataclass(frozen=True, eq=False)
class CaseImages:
    """A case's images, which lie on one grid.

    Attributes:
        image: the image.
        label: its label map; None where there is none.
        mask: its foreground; None where there is none.
    """

    image: sitk.Image
    label: sitk.Image | None
    mask: sitk.Image | None


def read_case(case: Case, labels: Collection[int]) -> CaseImages:
    """Read the image, the label map and the mask of a case.

    Args:
        case: the case to read.
        labels: the ids of the dataset's label table.

    Raises:
        MissingFile, BadImage: the first problem that :func:`check_case` finds.
    """
    images, problems = _read(case, labels)
    if problems:
        raise problems[0]
    return images


def check_case(case: Case, labels: Collection[int]) -> list[UserError]:
    """List the problems of a case, a :class:`MissingFile` or :class:`BadImage` each; arguments as in read_case."""
    try:
        return _read(case, labels)[1]
    except UserError as error:
        return [error]


def _read(case: Case, labels: Collection[int]) -> tuple[CaseImages, list[UserError]]:
    """Read a case and list its problems. Raises UserError when there is no image to compare the others with."""
    image = _open(case.image)
    problems: list[UserError] = []
    try:
        check_values(image, case.image)
    except UserError as error:
        problems.append(error)
    # A case may have one file for its label map and its mask.
    maps: dict[Path | None, sitk.Image] = {}
    for path in filter(None, dict.fromkeys((case.label, case.mask))):
        try:
            maps[path] = _open(path)
        except UserError as error:
            problems.append(error)
        else:
            problems += _grid_problems(Grid.from_image(maps[path]), Grid.from_image(image), path, case.image.name)
            if path == case.label:
                problems += _label_problems(maps[path], case, path, labels)
    return CaseImages(image, maps.get(case.label), maps.get(case.mask)), problems


def check_mask(mask: sitk.Image, name: Path | str, image: sitk.Image, image_name: str) -> sitk.Image:
    """Return the mask. Raises BadImage when it does not lie on the grid of its image."""
    for problem in _grid_problems(Grid.from_image(mask), Grid.from_image(image), name, image_name):
        raise problem
    return mask


def _open(path: Path) -> sitk.Image:
    if not path.exists():
        raise MissingFile(path, "add the file or take it out of dataset.json")
    return read_image(path)


def _grid_problems(grid: Grid, expected: Grid, path: Path | str, image: str) -> list[BadImage]:
    if grid.same_as(expected):
        return []
    differences = [
        f"{name} {format_sizes(getattr(grid, name))} instead of {format_sizes(getattr(expected, name))}"
        for name in ("size", "spacing", "origin", "direction")
        if not np.allclose(getattr(grid, name), getattr(expected, name), rtol=0, atol=1e-4)
    ]
    index = expected.physical_to_index(grid.corners())
    # A flipped map may still share a layer of voxels with its image.
    if np.any(index.max(axis=0) < 0.5) or np.any(index.min(axis=0) > np.subtract(expected.size, 1.5)):
        relation, remedy = "lies outside", "list the one that belongs to this image"
    else:
        relation, remedy = "is not on the grid of", "resample it onto the image's grid with nearest neighbours"
    if grid.size == expected.size:
        remedy = f"give it the image's header if it was drawn on this image, else {remedy}"
    difference = (differences or ["a slightly different position"])[0]
    return [BadImage(path, f"{relation} its image {image} ({difference})", remedy)]


def _label_problems(image: sitk.Image, case: Case, path: Path, labels: Collection[int]) -> list[BadImage]:
    # Of each run of one value only the first voxel is sorted, which is ten times as fast.
    voxels = image_to_array(image).ravel()
    values = np.unique(np.append(voxels[1:][voxels[1:] != voxels[:-1]], voxels[0]))
    if not np.all(np.isfinite(values)) or np.any(values != np.round(values)):
        fractions = ", ".join([f"{v:g}" for v in values if not np.isfinite(v) or v != np.round(v)][:3])
        return [BadImage(path, f"holds values that are no label ids ({fractions})", "save whole numbers")]
    present = {int(value) for value in values} - {0}
    if not present and case.annotated_labels is None:
        warn_once(f"{path} holds no label, every voxel is 0: remove it if nothing was annotated in this image.")
    negative = {label for label in present if label < 0}
    kinds = (
        (
            "negative label",
            negative,
            "as if ids above 127 had been stored in signed 8 bits",
            "save it in an unsigned type",
        ),
        (
            "label",
            present - set(labels) - negative,
            "which 'labels' in dataset.json does not list",
            "add it there or correct the label image",
        ),
        (
            "label",
            present & set(labels) - case.annotated_structures(labels),
            "which is not among its 'annotated_labels' in dataset.json",
            "add it there or clear it from the label image",
        ),
    )
    return [
        BadImage(
            path,
            f"holds the {kind} {', '.join(map(str, sorted(ids)[:5]))}{', ...' if len(ids) > 5 else ''}, {problem}",
            remedy,
        )
        for kind, ids, problem, remedy in kinds
        if ids
    ]


def sources_of(case: Case) -> Sources:
    """Digests of a case's files by their role: when they change, what was made from the case is outdated.

    Raises:
        UserError: a file cannot be read.
    """
    digests: Sources = {
        role: image_digest(path)
        for role, path in (("image", case.image), ("label", case.label), ("mask", case.mask))
        if path is not None
    }
    return digests if case.annotated_labels is None else digests | {"annotated_labels": list(case.annotated_labels)}


def verify_dataset_integrity(dataset: Dataset, num_processes: int) -> None:
    """Check every case and log all problems.

    Raises:
        MissingFile, BadImage: the only problem.
        BadCases: there are several.
    """
    problems_of_cases = map_in_processes(
        partial(check_case, labels=dataset.labels), dataset.cases, num_processes, "Verify"
    )
    problems = [problem for problems_of_case in problems_of_cases for problem in problems_of_case]
    for problem in problems:
        log.error("%s", problem)
    if problems:
        raise problems[0] if len(problems) == 1 else BadCases(problems)
    log.info("%s: %d cases verified.", dataset.name, len(dataset.cases))
