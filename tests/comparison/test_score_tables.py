from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_predictions import write_predictions

from llmreg.comparison.benchmark_record import PredictionRun
from llmreg.comparison.score_tables import (
    is_prealigned,
    read_pair_scores,
    scores_before_registration,
    select_stage,
)
from llmreg.geometry.grid import Grid

GRID = Grid.from_centre((24, 22, 20), (1.5,) * 3, (0.0, 0.0, 0.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_predictions(tmp_path_factory.mktemp("scores") / "out", GRID, [3.0, 4.5], 0.5, uncertainty=False)


def test_scores_of_a_pair_are_means_over_its_labels(folder: Path) -> None:
    table = pd.read_csv(folder / "metrics.csv")
    scores = read_pair_scores(folder)
    assert list(scores.index) == ["pair 0", "pair 1"]
    for pair in scores.index:
        rows = table[table["pair_id"] == pair]
        assert scores.loc[pair, "dice"] == pytest.approx(np.mean(rows["dice"]))
        assert scores.loc[pair, "initial_dice"] == pytest.approx(np.mean(rows["initial_dice"]))
        assert scores.loc[pair, "dice"] > scores.loc[pair, "initial_dice"]
    assert "label" not in scores
    assert (scores["seconds"] == 1.5).all()


def test_seconds_of_a_comparison_are_the_programs_shared_among_its_pairs(folder: Path) -> None:
    for spent, expected in ((7.0, 3.5), (0.0, 0.0), (None, np.nan)):
        PredictionRun(about={}, spent=spent).write(folder)
        np.testing.assert_array_equal(read_pair_scores(folder)["seconds"], expected)
    (folder / "benchmark.json").unlink()


def test_a_structure_without_distance_is_lost(folder: Path) -> None:
    file = folder / "metrics.csv"
    text = file.read_text()
    table = pd.read_csv(file)
    table.loc[0, ["dice", "hd95_mm"]] = [0.0, np.nan]
    table.to_csv(file, index=False)
    assert list(read_pair_scores(folder)["lost"]) == [1, 0]
    file.write_text(text)


def make_scores(**columns: list[float]) -> pd.DataFrame:
    return pd.DataFrame(columns, index=pd.Index(["a", "b"], name="pair_id"))


def test_earlier_stages_come_from_any_method_that_has_the_pair() -> None:
    first = make_scores(dice=[0.8, 0.9], initial_dice=[0.1, 0.2], prealigned_dice=[0.3, 0.2])
    other = first.assign(dice=0.5).rename(index={"b": "c"})
    stages = scores_before_registration([first, other])
    assert list(stages) == ["Initial", "Pre-aligned"]
    assert list(stages["Initial"].index) == ["a", "b", "c"]
    assert list(stages["Initial"]["dice"]) == [0.1, 0.2, 0.2]
    assert list(select_stage(first, "prealigned_").columns) == ["dice"]


def test_a_prealignment_that_moves_nothing_is_no_stage() -> None:
    scores = make_scores(dice=[0.8, 0.9], initial_dice=[0.1, 0.2], prealigned_dice=[0.1, 0.2])
    assert not is_prealigned(scores)
    assert list(scores_before_registration([scores])) == ["Initial"]
    landmarks = scores.assign(initial_tre_mm=[5.0, 6.0], prealigned_tre_mm=[5.0, 4.0])
    assert is_prealigned(landmarks)
    assert not is_prealigned(landmarks, ["dice"])
