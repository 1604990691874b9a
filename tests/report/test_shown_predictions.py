from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from tiny_predictions import write_benchmark, write_predictions

from llmreg.errors import UnreadableFile
from llmreg.geometry.grid import Grid
from llmreg.predictions import PredictedPair, Predictions
from llmreg.report.content import read_source
from llmreg.report.shown_predictions import MethodResults, read_results, read_scores, select_pairs


def results(title: str, dice: dict[str, float | None], unscored: tuple[str, ...] = ()) -> MethodResults:
    pairs = {name: PredictedPair(folder=Path(), pair_id=name, fixed="F", moving="M") for name in (*dice, *unscored)}
    rows = [
        {"pair_id": name, "label": 1, "name": "a", "dice": value, "initial_dice": 0.5} for name, value in dice.items()
    ]
    table = pd.DataFrame(rows, columns=["pair_id", "label", "name", "dice", "initial_dice"])
    return MethodResults(title, pairs, (), table, Predictions(pairs=[]))


def test_the_worst_and_the_best_on_average_over_methods_are_shown_worst_first() -> None:
    first = results("one", {"a": 0.9, "b": 0.2, "c": 0.5, "d": 0.6, "e": 0.7})
    second = results("other", {"a": 0.9, "b": 0.8, "c": 0.1, "d": 0.6, "e": 0.7})
    order = ["c", "b", "d", "e", "a"]
    for count, expected in ((9, order), (5, order), (3, ["c", "b", "a"]), (2, ["c", "a"]), (1, ["c"])):
        shown = select_pairs([first, second], count)
        assert [pair.pair_id for pair in shown] == expected
        assert [pair.rank for pair in shown] == [order.index(name) + 1 for name in expected]
        assert {pair.out_of for pair in shown} == {5}


def test_a_pair_that_one_method_lacks_is_shown_of_the_others() -> None:
    shown = select_pairs([results("one", {"a": 0.9}), results("other", {"a": 0.9, "b": 0.5})], 5)
    assert [[prediction is not None for prediction in pair.predictions] for pair in shown] == [
        [False, True],
        [True, True],
    ]


def test_pairs_without_scores_keep_their_order_and_come_last() -> None:
    assert [pair.pair_id for pair in select_pairs([results("one", {}, ("z", "y", "x"))], 2)] == ["z", "y"]
    assert [pair.rank for pair in select_pairs([results("one", {"a": None, "b": 0.3}, ("z",))], 3)] == [1, None, None]


def test_the_images_are_those_that_any_method_names() -> None:
    bare = {"folder": Path("/there"), "pair_id": "a", "fixed": "F", "moving": "M"}
    pair = select_pairs(
        [
            MethodResults(title, {"a": PredictedPair(**bare, **named)}, (), read_scores([]), Predictions(pairs=[]))
            for title, named in (("one", {}), ("two", {"fixed_path": "f.nii", "moving_path": "m.nii"}))
        ],
        1,
    )[0]
    assert pair.images.path("fixed_path") == Path("/there/f.nii")


@pytest.mark.parametrize("content", [[], {"pairs": [{"pair_id": "a"}]}, {"pairs": 3}, {"pairs": [], "failed": [3]}, {}])
def test_a_predict_json_of_something_else_is_refused(tmp_path: Path, content: object) -> None:
    (tmp_path / "predict.json").write_text(json.dumps(content))
    with pytest.raises(UnreadableFile) as refusal:
        read_results("a", [tmp_path])
    assert refusal.value.path == tmp_path / "predict.json"


def test_scores_of_earlier_predictions_are_not_shown(
    upright: Grid, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_predictions(tmp_path, upright, [2.0], 1.0)
    assert not read_results("a", [folder]).scores.empty
    content = json.loads((folder / "predict.json").read_text())
    (folder / "predict.json").write_text(json.dumps(content | {"options": {"refine": 50}}))
    assert read_results("a", [folder]).scores.empty
    assert str(folder / "metrics.csv") in caplog.text
    assert read_source(folder).tables == ()


def test_methods_that_were_compared_one_after_the_other_share_a_table(upright: Grid, tmp_path: Path) -> None:
    folder = write_benchmark(tmp_path, upright, [2.0, 3.0])
    (folder / "comparison.csv").write_text("method\nWhole\n")
    (table,) = read_source(folder).tables
    assert len(table.rows) == 3
    (folder / "comparison.csv").rename(folder / "table1.csv")
    (table,) = read_source(folder).tables
    assert list(table.rows) == ["Whole"]


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UnreadableFile) as refusal:
        read_scores([tmp_path])
    assert refusal.value.path == tmp_path / "metrics.csv"
