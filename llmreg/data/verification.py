"""Verification of a dataset: every file is opened once and compared with ``dataset.json``."""

from __future__ import annotations

import logging
from functools import partial

from llmreg.data.case_images import check_case
from llmreg.data.dataset import Dataset
from llmreg.errors import UserError
from llmreg.workers import map_in_processes

log = logging.getLogger(__name__)


def verify_dataset_integrity(dataset: Dataset, num_processes: int = 2) -> None:
    """Check every case and log all problems.

    Raises:
        UserError: tells the first problem with its remedy, and the number of the others in the log.
    """
    problems = _modality_problems(dataset)
    for case_problems in map_in_processes(
        partial(check_case, labels=dataset.labels), dataset.cases, num_processes, "Verify"
    ):
        problems += case_problems
    for problem in problems:
        log.error("%s", problem)
    if problems:
        others = f" (and {len(problems) - 1} more, see the log)" if len(problems) > 1 else ""
        raise UserError(problems[0].rstrip(".") + others + ".")
    log.info("%s: %d cases verified.", dataset.name, len(dataset.cases))


def _modality_problems(dataset: Dataset) -> list[str]:
    present = {case.modality for case in dataset.cases}
    return [
        f"{dataset.folder}: modality {modality} ({contrast}) has no cases: list its images in dataset.json."
        for modality, contrast in dataset.modalities.items()
        if modality not in present
    ]
