"""``--verify_dataset_integrity``: every image and label is opened once and compared with what the dataset promises."""

from __future__ import annotations

import logging
from functools import partial

from llmreg.data.case_images import check_case
from llmreg.data.dataset import Dataset
from llmreg.errors import UserError
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


def _modality_problems(dataset: Dataset) -> list[str]:
    present = {case.modality for case in dataset.cases}
    return [
        f"{dataset.folder}: modality {modality} ({contrast}) has no cases: list its images in dataset.json."
        for modality, contrast in dataset.modalities.items()
        if modality not in present
    ]
