"""``--verify_dataset_integrity``: every image and label is opened once and compared with what the dataset promises."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from llmreg.dataset import Case, Dataset
from llmreg.errors import UserError
from llmreg.geometry.grid import Grid
from llmreg.geometry.io import check_values, read_image
from llmreg.workers import in_parallel

log = logging.getLogger(__name__)


def verify_dataset_integrity(dataset: Dataset, num_processes: int = 2) -> None:
    """Check every case; all problems are logged.

    Raises:
        UserError: names the first problem and its remedy, and how many more the log holds.
    """
    problems = _modality_problems(dataset)
    for found in in_parallel(partial(check_case, labels=dataset.labels), dataset.cases, num_processes, "Verify"):
        problems += found
    for problem in problems:
        log.error("%s", problem)
    if problems:
        rest = f" (and {len(problems) - 1} more, see the log)" if len(problems) > 1 else ""
        raise UserError(problems[0].rstrip(".") + rest + ".")
    log.info("%s: %d cases verified.", dataset.name, len(dataset.cases))


def check_case(case: Case, labels: Mapping[int, str]) -> list[str]:
    """What is wrong with one case, a sentence with its remedy for each problem.

    Args:
        case: the case whose image, label and mask are read.
        labels: label table of the dataset, id -> name.
    """
    image, problems = _read(case.image)
    if image is None:
        return problems
    try:
        check_values(image, case.image)
    except UserError as error:
        problems.append(str(error))
    grid = Grid.from_image(image)
    for path in (case.label, case.mask):
        if path is None:
            continue
        other, unreadable = _read(path)
        problems += unreadable
        if other is None:
            continue
        difference = _difference(Grid.from_image(other), grid)
        if difference:
            problems.append(
                f"{path} is not on the grid of its image {case.image.name} ({difference}): "
                "resample it onto the image's grid with nearest neighbours."
            )
        if path == case.label:
            problems += _label_problems(other, case, path, labels)
    return problems


def _modality_problems(dataset: Dataset) -> list[str]:
    present = {case.modality for case in dataset.cases}
    return [
        f"{dataset.folder}: modality {modality} ({contrast}) has no cases: list its images in dataset.json."
        for modality, contrast in dataset.modalities.items()
        if modality not in present
    ]


def _read(path: Path) -> tuple[sitk.Image | None, list[str]]:
    if not path.is_file():
        return None, [f"{path} does not exist: add the file or take it out of dataset.json."]
    try:
        return read_image(path), []
    except UserError as error:
        return None, [str(error)]


def _difference(found: Grid, expected: Grid) -> str:
    """Empty when the grids agree, else what differs."""
    if found.same_as(expected):
        return ""
    for name in ("size", "spacing", "origin", "direction"):
        mine, theirs = getattr(found, name), getattr(expected, name)
        if not np.allclose(mine, theirs, rtol=0, atol=1e-4):
            return f"{name} {_short(mine)} instead of {_short(theirs)}"
    return "a slightly different position"


def _short(values: tuple[float, ...]) -> str:
    return "x".join(f"{value:.6g}" for value in values)


def _label_problems(image: sitk.Image, case: Case, path: Path, labels: Mapping[int, str]) -> list[str]:
    values = np.unique(sitk.GetArrayViewFromImage(image))
    if not np.all(np.isfinite(values)) or np.any(values != np.round(values)):
        odd = [f"{v:g}" for v in values if not np.isfinite(v) or v != np.round(v)][:3]
        return [f"{path} holds values that are no label ids ({', '.join(odd)}): save whole numbers."]
    present = {int(value) for value in values} - {0}
    problems = []
    unknown = sorted(present - set(labels))
    if unknown:
        problems.append(
            f"{path} holds the label {_some(unknown)}, which 'labels' in dataset.json does not list: "
            "add it there or correct the label image."
        )
    if case.annotated_labels is not None:
        unannounced = sorted(present & set(labels) - set(case.annotated_labels))
        if unannounced:
            problems.append(
                f"{path} holds the label {_some(unannounced)}, which is not among its 'annotated_labels' in "
                "dataset.json: add it there or clear it from the label image."
            )
    return problems


def _some(values: list[int]) -> str:
    return ", ".join(str(value) for value in values[:5]) + (", ..." if len(values) > 5 else "")
