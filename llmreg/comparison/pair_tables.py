"""A dataset's pairs for those who register them: a table for this package, and what other programs start from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from llmreg.comparison.peers import PeerPair
from llmreg.comparison.study import Study
from llmreg.data.dataset import Dataset, Pair
from llmreg.engine.prealignment import CaseTransform, between
from llmreg.files import atomic_write
from llmreg.preprocessing import dataset_steps as pipeline
from llmreg.preprocessing.preprocess import read_case_record, volumes_folder


def write_pairs(path: Path, pairs: Sequence[Pair], dataset: Dataset) -> Path:
    """A table for ``llmreg_predict -i`` of a dataset's pairs, with their label maps and masks."""
    rows = []
    for pair in pairs:
        row: dict[str, Any] = {}
        for role, case in (("fixed", dataset.case(pair.fixed)), ("moving", dataset.case(pair.moving))):
            files = {role: case.image, f"{role}_label": case.label, f"{role}_mask": case.mask}
            # A relative path would be looked up beside the table; a link's own name is the case's.
            row |= {column: path.absolute() for column, path in files.items() if path is not None}
            row[f"{role}_modality"] = case.modality
        rows.append(row)
    with atomic_write(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)
    return path


def peer_pairs(study: Study, pairs: Sequence[Pair], dataset: Dataset) -> list[PeerPair]:
    """Pairs, each with the pre-alignment that networks start from."""
    folder = pipeline.preprocessed_dataset(study.dataset)
    volumes = volumes_folder(folder, pipeline.find_plans(folder, study.plans))
    found = []
    for pair in pairs:
        fixed, moving = dataset.case(pair.fixed), dataset.case(pair.moving)
        start = between(_placed(volumes, fixed.name), _placed(volumes, moving.name))
        found.append(
            PeerPair(f"{fixed.name}_{moving.name}", pair, fixed.image, moving.image, fixed.label, moving.label, start)
        )
    return found


def _placed(volumes: Path, case: str) -> CaseTransform:
    return CaseTransform.from_dict(read_case_record(volumes, case)["transform"])
