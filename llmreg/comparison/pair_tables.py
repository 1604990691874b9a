"""A dataset's pairs as methods need them: a table for learned ones, and files with a start for classical ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import SimpleITK as sitk

from llmreg.comparison.benchmark_settings import BenchmarkSettings, load_plans
from llmreg.data.dataset import Case, Dataset, Pair
from llmreg.engine.prealignment import CaseTransform, pair_prealignment
from llmreg.files import write_text
from llmreg.paths import preprocessed_dataset
from llmreg.predictions import PredictedPair
from llmreg.preprocessing.preprocessed_volumes import read_case_record, volumes_folder


@dataclass(frozen=True, eq=False)
class ClassicalPair:
    """Two cases, and where their registration starts.

    Attributes:
        fixed: the fixed case.
        moving: the moving case.
        prealignment: linear, fixed points -> moving points; all methods start from it, as networks do.
    """

    fixed: Case
    moving: Case
    prealignment: sitk.Transform

    @property
    def name(self) -> str:
        """The pair's name in files and tables."""
        return f"{self.fixed.name}_{self.moving.name}"


def write_pairs(path: Path, pairs: Sequence[Pair], dataset: Dataset) -> None:
    """Write a table of a dataset's pairs with their label maps and masks, which a prediction reads."""
    rows = []
    for pair in pairs:
        row: dict[str, Any] = {}
        for role, case in (("fixed", dataset.case(pair.fixed)), ("moving", dataset.case(pair.moving))):
            files = {role: case.image, f"{role}_label": case.label, f"{role}_mask": case.mask}
            # Relative paths would be looked up beside the table. Links are not resolved: they have the cases' names.
            row |= {column: path.absolute() for column, path in files.items() if path is not None}
            row[f"{role}_modality"] = case.modality
        rows.append(row)
    write_text(path, pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))


def classical_pairs(settings: BenchmarkSettings, pairs: Sequence[Pair], dataset: Dataset) -> list[ClassicalPair]:
    """Give each pair its cases and the pre-alignment that networks start from."""
    volumes = volumes_folder(preprocessed_dataset(settings.dataset), load_plans(settings))
    return [
        ClassicalPair(
            dataset.case(pair.fixed),
            dataset.case(pair.moving),
            pair_prealignment(_read_transform(volumes, pair.fixed), _read_transform(volumes, pair.moving)),
        )
        for pair in pairs
    ]


def _read_transform(volumes: Path, case: str) -> CaseTransform:
    return CaseTransform.from_dict(read_case_record(volumes, case)["transform"])


def are_transforms_there(pair: PredictedPair) -> bool:
    """Whether the field and the pre-alignment that the record of a pair names exist."""
    return all(path is None or path.is_file() for path in (pair.path("field"), pair.path("prealignment")))
