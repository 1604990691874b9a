"""The table of scores, its summary, and the summary as text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scored_rows import rows_of_two_pairs

from llmreg.evaluation.summary import format_summary, is_lost, make_table, summarise, write_results


def test_rows_without_a_label_do_not_make_the_others_fractions() -> None:
    """Known columns come first, in their order."""
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


def line(text: str, start: str) -> list[str]:
    """The cells of the line that starts so."""
    (row,) = (line for line in text.splitlines() if line.startswith(start))
    return row.removeprefix(start).split("  ")


def cells(text: str, start: str) -> list[str]:
    return [cell.strip() for cell in line(text, start) if cell.strip()]


def test_each_label_and_the_mean_are_shown_before_and_after() -> None:
    text = format_summary(summarise(pd.DataFrame(rows_of_two_pairs())))
    assert cells(text, "label") == ["pairs", "Dice initial", "Dice registered", "HD95 initial", "HD95 registered"]
    assert cells(text, "a") == ["2", "27.50", "55.00", "4.00", "2.00"]
    assert cells(text, "b") == ["1", "40.00", "80.00", "4.00", "2.00"]
    assert cells(text, "mean +- SD over pairs")[:3] == ["2", "30.00 +- 7.07", "60.00 +- 14.14"]
    assert cells(text, "|J| <= 0 (%)") == ["1.500 +- 0.707"]


def test_numbers_are_aligned_to_the_right() -> None:
    text = format_summary(summarise(pd.DataFrame(rows_of_two_pairs())))
    ends = {len(row) for row in text.splitlines() if row.startswith(("label", "a ", "b ", "mean"))}
    assert len(ends) == 1


def test_pre_alignment_has_columns_of_its_own() -> None:
    rows = [row | {"prealigned_dice": 0.25, "prealigned_hd95_mm": 3.0} for row in rows_of_two_pairs()]
    text = format_summary(summarise(pd.DataFrame(rows)))
    assert cells(text, "a") == ["2", "27.50", "25.00", "55.00", "4.00", "3.00", "2.00"]


def test_costs_failures_and_lost_structures_are_told() -> None:
    rows = [row | {"seconds": 1.5} for row in rows_of_two_pairs()]
    rows[0] |= {"dice": 0.0, "hd95_mm": float("nan")}
    details = {"failed": ["p9"], "label_interpolation": "nearest", "peak_memory_gb": 2.04}
    text = format_summary(summarise(pd.DataFrame(rows)) | details)
    for fact in ("1 structures vanished", "p9", "nearest", "1.5 +- 0.0 s a pair", "2.0 GiB"):
        assert fact in text


def test_names_of_labels_are_no_markup() -> None:
    rows = [row | {"name": "[red]liver[/] :heart:"} for row in rows_of_two_pairs()]
    assert "[red]liver[/] :heart:" in format_summary(summarise(pd.DataFrame(rows)))


def test_landmarks_alone_have_no_table_of_labels() -> None:
    rows = [{"pair_id": "p", "label": None, "name": None, "dice": None, "hd95_mm": None, "tre_mm": 2.0}]
    table = pd.DataFrame(rows).astype({"dice": float, "hd95_mm": float})
    text = format_summary(summarise(table))
    assert "label" not in text
    assert cells(text, "TRE (mm)") == ["2.00"]
