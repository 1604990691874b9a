"""A dataset's pairs as methods need them: a table for learned ones, and files with a start for classical ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import SimpleITK as sitk

from llmreg.comparison.benchmark_settings import BenchmarkSettings, load_plans
from llmreg.data.dataset import Dataset, Pair
from llmreg.engine.prealignment import CaseTransform, between
from llmreg.files import atomic_write
from llmreg.paths import preprocessed_dataset
from llmreg.predictions import PredictedPair
from llmreg.preprocessing.preprocessed_volumes import read_case_record, volumes_folder


@dataclass(frozen=True, eq=False)
class ClassicalPair:
    """Two images, their label maps, and where the registration starts.

    Attributes:
        name: ``<fixed case>_<moving case>``.
        cases: names of the fixed and the moving case.
        fixed: file of the fixed image.
        moving: file of the moving image.
        fixed_label: file of its label map, where there is one.
        moving_label: the same of the moving image.
        prealignment: linear, fixed points -> moving points; all methods start from it, as networks do.
    """

    name: str
    cases: Pair
    fixed: Path
    moving: Path
    fixed_label: Path | None
    moving_label: Path | None
    prealignment: sitk.Transform


def write_pairs(path: Path, pairs: Sequence[Pair], dataset: Dataset) -> None:
    """Write a table of a dataset's pairs with their label maps and masks, which a prediction reads."""
    rows = []
    for pair in pairs:
        row: dict[str, Any] = {}
        for role, case in (("fixed", dataset.case(pair.fixed)), ("moving", dataset.case(pair.moving))):
            files = {role: case.image, f"{role}_label": case.label, f"{role}_mask": case.mask}
            # Relative paths would be looked up beside the table. Links are not resolved: their names are the cases'.
            row |= {column: path.absolute() for column, path in files.items() if path is not None}
            row[f"{role}_modality"] = case.modality
        rows.append(row)
    with atomic_write(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


def classical_pairs(settings: BenchmarkSettings, pairs: Sequence[Pair], dataset: Dataset) -> list[ClassicalPair]:
    """Give each pair its files and the pre-alignment that networks start from."""
    volumes = volumes_folder(preprocessed_dataset(settings.dataset), load_plans(settings))

    def with_files(pair: Pair) -> ClassicalPair:
        fixed, moving = dataset.case(pair.fixed), dataset.case(pair.moving)
        start = between(_case_transform(volumes, fixed.name), _case_transform(volumes, moving.name))
        name = f"{fixed.name}_{moving.name}"
        return ClassicalPair(name, pair, fixed.image, moving.image, fixed.label, moving.label, start)

    return [with_files(pair) for pair in pairs]


def are_transforms_there(pair: PredictedPair) -> bool:
    """Whether the field and the pre-alignment that the record of a pair names exist."""
    paths = [pair.path(output) for output in ("field", "prealignment")]
    return all(path.is_file() for path in paths if path is not None)


def _case_transform(volumes: Path, case: str) -> CaseTransform:
    return CaseTransform.from_dict(read_case_record(volumes, case)["transform"])
