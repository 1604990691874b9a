from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wilcoxon

from llmreg.comparison.tables import as_frame, as_latex, as_markdown, build_table
from llmreg.errors import BadArgument

PAIRS = [f"pair {k}" for k in range(12)]


def make_scores(dice: float, hd95: float, seed: int, pairs: list[str] = PAIRS, **more: float) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    figures = {"dice": dice + 0.01 * rng.normal(size=len(pairs)), "hd95_mm": hd95 + 0.1 * rng.normal(size=len(pairs))}
    return pd.DataFrame(figures | more, index=pd.Index(pairs, name="pair_id"))


@pytest.fixture
def scores() -> dict[str, pd.DataFrame]:
    return {
        "Initial": make_scores(0.9, 1.0, 0, folding_percent=0.0, seconds=1.0),
        "first": make_scores(0.80, 3.0, 1, folding_percent=0.1),
        "like first": make_scores(0.80, 2.0, 2, folding_percent=0.0),
        "worse": make_scores(0.70, 4.0, 3, folding_percent=0.2),
        "worst": make_scores(0.60, 5.0, 4, folding_percent=0.3),
    }


def test_means_and_sds_are_those_over_shared_pairs(scores: dict[str, pd.DataFrame]) -> None:
    scores["worse"] = scores["worse"].iloc[::-1].drop("pair 3")
    table = build_table("A", scores)
    assert table.pairs == 11
    for method, method_scores in scores.items():
        shared_scores = method_scores.drop(index="pair 3", errors="ignore")
        assert table.rows[method]["dice"].mean == pytest.approx(shared_scores["dice"].mean())
        assert table.rows[method]["dice"].sd == pytest.approx(np.std(shared_scores["dice"], ddof=1))


def test_the_best_is_no_initial_value_and_each_column_has_its_own(scores: dict[str, pd.DataFrame]) -> None:
    rows = build_table("A", scores).rows
    best_dice = max(("first", "like first"), key=lambda method: scores[method]["dice"].mean())
    assert [method for method in rows if rows[method]["dice"].best] == [best_dice]
    assert [method for method in rows if rows[method]["hd95_mm"].best] == ["like first"]
    assert [
        method for method in rows if "folding_percent" in rows[method] and rows[method]["folding_percent"].best
    ] == ["like first"]
    assert "folding_percent" not in rows["Initial"]
    assert "seconds" not in rows["Initial"]


def test_p_values_are_holms_of_wilcoxons(scores: dict[str, pd.DataFrame]) -> None:
    rows = build_table("A", scores).rows
    best = scores["like first"]["hd95_mm"]
    raw = {m: wilcoxon(scores[m]["hd95_mm"], best).pvalue for m in ("first", "worse", "worst")}
    for method, p in raw.items():
        # Holm's definition: the largest corrected value of all tests whose p values are no larger than this one.
        smaller = [other for other in raw.values() if other <= p]
        expected = max(min(1.0, sum(again >= other for again in raw.values()) * other) for other in smaller)
        assert rows[method]["hd95_mm"].p == pytest.approx(expected)
    assert rows["like first"]["hd95_mm"].p is None
    assert rows["Initial"]["hd95_mm"].p is None
    assert rows["worse"]["folding_percent"].p is None


def test_who_loses_structures_is_not_best_in_the_distances_of_the_others(scores: dict[str, pd.DataFrame]) -> None:
    """One method loses structures in the six hardest pairs, and is half a millimetre worse in the others."""
    hard = np.repeat([16.0, 0.0], 6)
    good = make_scores(0.8, 4.0, 1, lost=0).assign(hd95_mm=lambda table: table["hd95_mm"] + hard)
    losing = good.assign(lost=hard / 16, hd95_mm=np.where(hard > 0, np.nan, good["hd95_mm"] + 0.5))
    table = build_table("A", {"good": good, "losing": losing})
    cell, other = (table.rows[method]["hd95_mm"] for method in ("good", "losing"))
    assert other.mean < cell.mean
    assert (cell.best, other.best) == (True, False)
    assert cell.p is other.p is None
    assert (table.rows["good"]["lost"].mean, table.rows["losing"]["lost"].mean) == (0, 0.5)
    row = next(line for line in as_markdown(table).splitlines() if line.startswith("| losing"))
    assert ")\N{DAGGER} |" in row
    assert "\N{DAGGER}" in as_markdown(table).splitlines()[-1]
    assert r"$\dagger$" in as_latex(table)
    # Where no method loses structures, the table does not mention them.
    assert "lost" not in as_markdown(build_table("A", {"good": good, "other": good}))


def test_structures_outside_before_registration_flatter_the_start_too() -> None:
    good = make_scores(0.8, 4.0, 1, lost=0)
    start = make_scores(0.3, 9.0, 2, lost=1)
    table = build_table("A", {"Initial": start, "good": good})
    assert (table.rows["Initial"]["hd95_mm"].partial, table.rows["good"]["hd95_mm"].partial) == (True, False)
    assert table.rows["good"]["hd95_mm"].best


def test_methods_that_share_no_pair_have_no_table() -> None:
    with pytest.raises(BadArgument, match="one, other") as error:
        build_table("A", {"one": make_scores(0.8, 3.0, 1, ["a", "b"]), "other": make_scores(0.8, 3.0, 1, ["c"])})
    assert error.value.argument == "methods"


def test_equal_methods_do_not_differ() -> None:
    method_scores = make_scores(0.8, 3.0, 1)
    rows = build_table("A", {"one": method_scores, "other": method_scores.copy()}).rows
    assert rows["other"]["dice"].p == 1.0


def test_a_single_pair_has_no_sd() -> None:
    table = build_table("A", {"one": make_scores(0.8, 3.0, 1, PAIRS[:1]), "other": make_scores(0.7, 3.5, 2, PAIRS[:1])})
    assert "nan" not in as_markdown(table)
    assert table.rows["other"]["dice"].p == 1.0


def test_markdown_has_a_row_a_method(scores: dict[str, pd.DataFrame]) -> None:
    text = as_markdown(build_table("A table", scores, {"broken": "ended by SIGSEGV"}))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    head, rule, *rows = [line.strip("|").split("|") for line in lines]
    assert len({len(row) for row in (head, rule, *rows)}) == 1
    by_name = {row[0].strip(): row[1:] for row in rows}
    assert by_name["worst"][0].strip().endswith("*")
    assert by_name["broken"][0].strip() == "ended by SIGSEGV"
    assert sum("**" in cell for cell in by_name["like first"]) >= 2


def test_latex_compiles_in_principle(scores: dict[str, pd.DataFrame]) -> None:
    """Every row has the columns that the head announces, and nothing unescaped."""
    text = as_latex(build_table("A_table & more", scores, {"broken_one": "100% wrong"}))
    columns = text.split(r"\begin{tabular}{")[1].split("}")[0]
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in rows if "multicolumn" not in line} == {len(columns) - 1}
    assert r"broken\_one & \multicolumn{3}{l}{100\% wrong}" in text
    assert r"\textbf{" in text
    assert text.count("{") == text.count("}")
    # Outside of formulas, plain LaTeX sets these as other signs.
    assert not set("<>|") & set("".join(text.split("$")[::2]))
    assert "$<$ 0.05" in text


def test_numbers_are_kept_in_the_csv(scores: dict[str, pd.DataFrame]) -> None:
    frame = as_frame(build_table("A", scores, {"broken": "why"})).set_index("method")
    assert frame.loc["worst", "dice_mean"] == pytest.approx(scores["worst"]["dice"].mean())
    assert frame.loc["worst", "dice_p"] < 0.05
    assert frame.loc["broken", "failed"] == "why"
