from __future__ import annotations

from llmreg.text_tables import format_table


def test_columns_are_aligned_and_footers_set_off() -> None:
    text = format_table(["name", "n"], [["liver", "3"], ["a", "12"], ["mean", "7"]], footer_rows=1)
    assert text.splitlines() == ["name    n", "---------", "liver   3", "a      12", "---------", "mean    7"]


def test_several_columns_may_be_aligned_to_the_left() -> None:
    text = format_table(["a", "bb", "c"], [["1", "2", "3"], ["", "long", ""]], left=2)
    assert text.splitlines() == ["a  bb    c", "----------", "1  2     3", "   long"]


def test_cells_are_text_and_never_cut() -> None:
    cell = "[red]x[/] :heart: " + "long " * 100 + "."
    assert cell in format_table(["a"], [[cell]])
