"""Tables of the methods that can be scored, and what is kept of earlier comparisons; nothing is trained."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from llmreg.comparison import compare_methods as module
from llmreg.comparison.benchmark_record import BenchmarkRecord
from llmreg.comparison.benchmark_settings import BenchmarkSettings
from llmreg.comparison.compare_methods import compare_methods
from llmreg.comparison.methods import Method
from llmreg.data.dataset import Dataset
from llmreg.errors import BadArgument, UserError

INITIAL = Method("initial", "Initial", "initial")
GOOD, BAD = Method("good", "Good", "learned"), Method("bad", "Bad", "classical")
SETTINGS = BenchmarkSettings("1", ("0",))


@pytest.fixture
def scores(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The Dice that each method reaches; one that has none fails."""
    scores = {"good": 0.8}
    index = pd.Index(["a", "b"], name="pair_id")

    def score(settings: BenchmarkSettings, method: Method, data: Dataset, output: Path) -> pd.DataFrame:
        if method.name not in scores:
            raise UserError("it crashed")
        return pd.DataFrame({"dice": [scores[method.name], 0.6], "initial_dice": [0.3, 0.4]}, index)

    def read_labels(settings: BenchmarkSettings, method: Method, output: Path) -> pd.DataFrame:
        return pd.DataFrame({"name": ["organ"] * 2, "dice": [scores[method.name], 0.6]})

    monkeypatch.setattr(module, "load_raw_dataset", lambda name: dataset)
    monkeypatch.setattr(module, "all_judged_pairs", lambda settings, data: list(dataset.registration_val))
    monkeypatch.setattr(module, "identity", lambda settings: {"minutes": settings.minutes})
    monkeypatch.setattr(module, "score_method", score)
    monkeypatch.setattr(module, "read_label_scores", read_labels)
    return scores


def test_a_table_has_the_start_the_scored_methods_and_the_reasons_of_others(
    scores: dict[str, float], tmp_path: Path
) -> None:
    (table,) = compare_methods(SETTINGS, {"comparison": [INITIAL, GOOD, BAD], "table2": [INITIAL, BAD]}, tmp_path)
    assert list(table.rows) == ["Initial", "Good"]
    assert table.rows["Good"]["dice"].mean == pytest.approx(0.7)
    assert table.rows["Initial"]["dice"].mean == pytest.approx(0.35)
    assert list(table.failed) == ["Bad"]
    for suffix in (".csv", ".md", ".tex", "_structures.png"):
        assert (tmp_path / f"comparison{suffix}").stat().st_size > 0
    assert not (tmp_path / "table2.csv").exists()
    record = BenchmarkRecord.read(tmp_path)
    assert record is not None
    assert (record.methods, list(record.failed)) == ({"good": "Good"}, ["bad"])


def test_methods_of_an_earlier_comparison_stay_until_they_fail(scores: dict[str, float], tmp_path: Path) -> None:
    compare_methods(SETTINGS, {"comparison": [GOOD]}, tmp_path)
    scores["bad"] = 0.2
    compare_methods(SETTINGS, {"comparison": [BAD]}, tmp_path)
    record = BenchmarkRecord.read(tmp_path)
    assert record is not None
    assert record.methods == {"good": "Good", "bad": "Bad"}
    del scores["good"]
    with pytest.raises(BadArgument, match="it crashed") as error:
        compare_methods(SETTINGS, {"comparison": [GOOD]}, tmp_path)
    assert error.value.argument == "methods"
    record = BenchmarkRecord.read(tmp_path)
    assert record is not None
    assert (record.methods, list(record.failed)) == ({"bad": "Bad"}, ["good"])


def test_other_settings_need_another_folder_and_other_folds_begin_anew(
    scores: dict[str, float], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compare_methods(SETTINGS, {"comparison": [GOOD]}, tmp_path)
    with pytest.raises(BadArgument) as error:
        compare_methods(BenchmarkSettings("1", minutes=3.0), {"comparison": [GOOD]}, tmp_path)
    assert error.value.argument == "output"
    scores["bad"] = 0.2
    compare_methods(BenchmarkSettings("1", ("1",)), {"comparison": [BAD]}, tmp_path)
    assert "good" in caplog.text
    record = BenchmarkRecord.read(tmp_path)
    assert record is not None
    assert record.methods == {"bad": "Bad"}
