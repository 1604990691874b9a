"""A summary as a table for the terminal."""

from __future__ import annotations

import pandas as pd
from scored_rows import rows_of_two_pairs

from llmreg.evaluation.summary import summarise
from llmreg.evaluation.table import format_summary


def line(text: str, start: str) -> list[str]:
    """The cells of the line that starts so."""
    (found,) = (line for line in text.splitlines() if line.startswith(start))
    return found.removeprefix(start).split("  ")


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
