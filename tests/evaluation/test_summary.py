"""The table of scores and its summary."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scored_rows import rows_of_two_pairs

from llmreg.evaluation.summary import is_lost, make_table, summarise, write_results


def test_rows_without_a_label_do_not_make_the_others_fractions() -> None:
    """And known columns come first, in their order."""
    table = make_table([{"extra": 1, "tre_mm": 2.0, "label": None, "pair_id": "p"}, {"pair_id": "q", "label": 4}])
    assert list(table.columns) == ["pair_id", "label", "tre_mm", "extra"]
    assert table["label"].isna().tolist() == [True, False]
    assert (table["label"].dtype, table["label"][1]) == ("Int64", 4)
    with pytest.raises(ValueError, match="no rows"):
        make_table([])


def test_lost_structures_have_no_overlap_and_no_distance() -> None:
    nan = np.nan
    table = pd.DataFrame({"dice": [0, 0, 0.5, nan], "hd95_mm": [nan, 80, 3, nan], "initial_dice": [0.1, 0, 0, 0]})
    table["initial_hd95_mm"] = [4, nan, nan, 5]
    assert is_lost(table).tolist() == [True, False, False, False]
    assert is_lost(table, "initial_").tolist() == [False, True, True, False]


def test_summary_is_over_pairs_and_ignores_what_does_not_count() -> None:
    summary = summarise(pd.DataFrame(rows_of_two_pairs()))
    assert summary["num_pairs"] == 2
    assert summary["metrics"]["dice"] == pytest.approx({"mean": 0.6, "sd": np.std([0.7, 0.5], ddof=1), "num_pairs": 2})
    assert summary["metrics"]["folding_percent"]["mean"] == pytest.approx(1.5)
    assert summary["labels"]["1"]["dice"] == pytest.approx(0.55)
    assert summary["labels"]["4"] == {
        "name": "b",
        "num_pairs": 1,
        "initial_dice": 0.4,
        "dice": 0.8,
        "initial_hd95_mm": 4.0,
        "hd95_mm": 2.0,
    }
    assert summary["num_lost"] == 0


def test_results_are_written(tmp_path: Path) -> None:
    rows = rows_of_two_pairs()
    rows[0] |= {"dice": 0.0, "hd95_mm": np.nan}
    summary = write_results(rows, tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "metrics.csv")
    assert len(table) == 4
    assert list(table.columns[:3]) == ["pair_id", "label", "name"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    assert summary["num_lost"] == 1
    single = write_results(rows[2:], tmp_path / "one")
    assert single["metrics"]["dice"]["sd"] is None
    assert "NaN" not in (tmp_path / "one" / "summary.json").read_text()
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == ["metrics.csv", "summary.json"]
