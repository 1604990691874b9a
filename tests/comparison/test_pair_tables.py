from __future__ import annotations

from pathlib import Path

import pandas as pd

from llmreg.comparison.pair_tables import are_transforms_there, write_pairs
from llmreg.data.dataset import Dataset, Pair
from llmreg.predictions import PredictedPair

PAIRS = (Pair("Toy_0002_0000", "Toy_0001_0001"), Pair("Toy_0003_0000", "Toy_0003_0001"))


def test_the_table_of_pairs_names_files_by_role(dataset: Dataset, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.csv", PAIRS, dataset)
    table = pd.read_csv(tmp_path / "pairs.csv")
    for row, pair in zip(table.itertuples(), PAIRS, strict=True):
        for role, name in (("fixed", pair.fixed), ("moving", pair.moving)):
            case = dataset.case(name)
            assert Path(getattr(row, role)) == case.image
            assert getattr(row, f"{role}_modality") == case.modality
            label = getattr(row, f"{role}_label")
            assert (Path(label) if isinstance(label, str) else None) == case.label


def test_a_pair_is_complete_when_its_transforms_are_files(tmp_path: Path) -> None:
    names = {"pair_id": "a", "fixed": "F", "moving": "M", "folder": tmp_path}
    pair = PredictedPair(**names, field="field.nii.gz", prealignment="start.tfm")
    (tmp_path / "field.nii.gz").touch()
    assert not are_transforms_there(pair)
    (tmp_path / "start.tfm").touch()
    assert are_transforms_there(pair)
    assert are_transforms_there(PredictedPair(**names, field="field.nii.gz"))
