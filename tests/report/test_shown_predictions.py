from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from tiny_predictions import write_benchmark, write_predictions

from llmreg.errors import UserError
from llmreg.geometry.grid import Grid
from llmreg.report.content import read_source
from llmreg.report.shown_predictions import Prediction, Predictions, chosen, read_predictions, read_scores


def made(title: str, dice: dict[str, float | None], unscored: tuple[str, ...] = ()) -> Predictions:
    pairs = {name: Prediction(folder=Path(), pair_id=name, fixed="F", moving="M") for name in (*dice, *unscored)}
    rows = [
        {"pair_id": name, "label": 1, "name": "a", "dice": value, "initial_dice": 0.5} for name, value in dice.items()
    ]
    return Predictions(
        title, pairs, (), pd.DataFrame(rows, columns=["pair_id", "label", "name", "dice", "initial_dice"]), {}
    )


def test_the_worst_and_the_best_on_average_over_methods_are_shown_worst_first() -> None:
    one = made("one", {"a": 0.9, "b": 0.2, "c": 0.5, "d": 0.6, "e": 0.7})
    other = made("other", {"a": 0.9, "b": 0.8, "c": 0.1, "d": 0.6, "e": 0.7})
    order = ["c", "b", "d", "e", "a"]
    for count, expected in ((9, order), (5, order), (3, ["c", "b", "a"]), (2, ["c", "a"]), (1, ["c"])):
        shown = chosen([one, other], count)
        assert [pair.pair_id for pair in shown] == expected
        assert [pair.place for pair in shown] == [order.index(name) + 1 for name in expected]
        assert {pair.out_of for pair in shown} == {5}


def test_a_pair_that_one_method_lacks_is_shown_of_the_others() -> None:
    shown = chosen([made("one", {"a": 0.9}), made("other", {"a": 0.9, "b": 0.5})], 5)
    assert [[known is not None for known in pair.made] for pair in shown] == [[False, True], [True, True]]


def test_pairs_without_scores_keep_their_order_and_come_last() -> None:
    assert [pair.pair_id for pair in chosen([made("one", {}, ("z", "y", "x"))], 2)] == ["z", "y"]
    assert [pair.place for pair in chosen([made("one", {"a": None, "b": 0.3}, ("z",))], 3)] == [1, None, None]


def test_the_images_are_those_that_any_method_names() -> None:
    bare = {"folder": Path("/there"), "pair_id": "a", "fixed": "F", "moving": "M"}
    pair = chosen(
        [
            Predictions("one", {"a": Prediction(**bare)}, (), read_scores([]), {}),
            Predictions(
                "two", {"a": Prediction(**bare, fixed_path="f.nii", moving_path="m.nii")}, (), read_scores([]), {}
            ),
        ],
        1,
    )[0]
    assert pair.images.path("fixed_path") == Path("/there/f.nii")


@pytest.mark.parametrize("content", [[], {"pairs": [{"pair_id": "a"}]}, {"pairs": 3}, {"pairs": [], "failed": [3]}, {}])
def test_a_predict_json_of_something_else_is_refused(tmp_path: Path, content: object) -> None:
    (tmp_path / "predict.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="run the prediction again"):
        read_predictions("a", [tmp_path])


def test_scores_of_earlier_predictions_are_not_shown(
    upright: Grid, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_predictions(tmp_path, upright, [2.0], 1.0)
    assert not read_predictions("a", [folder]).scores.empty
    content = json.loads((folder / "predict.json").read_text())
    (folder / "predict.json").write_text(json.dumps(content | {"options": {"refine": 50}}))
    assert read_predictions("a", [folder]).scores.empty
    assert "run llmreg_evaluate again" in caplog.text
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
    with pytest.raises(UserError, match="score the folder again"):
        read_scores([tmp_path])
