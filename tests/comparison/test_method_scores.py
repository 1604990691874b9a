"""A method's predictions are scored once, and again when annotation has changed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from tiny_predictions import write_predictions

from llmreg.comparison import method_scores
from llmreg.comparison.benchmark_settings import BenchmarkSettings
from llmreg.comparison.method_scores import read_label_scores, score_method
from llmreg.comparison.methods import Method
from llmreg.data.dataset import Dataset, Pair
from llmreg.errors import UserError
from llmreg.geometry.grid import Grid
from llmreg.predictions import read_predictions
from llmreg.predictions import write_predictions as write_record

GRID = Grid.from_centre((24, 22, 20), (1.5,) * 3, (0.0, 0.0, 0.0))
METHOD = Method("ours", "Ours", "learned")
SETTINGS = BenchmarkSettings("1", ("0", "1"))


@pytest.fixture
def evaluated_folders(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Predictions instead of a training; the folders that are evaluated are listed."""
    evaluated_folders: list[Path] = []

    def predict(settings, method, fold, pairs, data, folder) -> None:
        if not (folder / "predict.json").exists():
            write_predictions(folder, GRID, [3.0 + int(fold)], uncertainty=False)
            content = read_predictions(folder)
            pairs = [pair.model_copy(update={"pair_id": f"pair {fold}"}) for pair in content.pairs]
            write_record(folder, content.model_copy(update={"failed": [], "pairs": pairs}))

    original = method_scores.evaluate_folder
    monkeypatch.setattr(method_scores, "train_and_predict", predict)
    monkeypatch.setattr(method_scores, "judged_pairs", lambda *_: (Pair("Toy_0001_0000", "Toy_0001_0001"),))
    monkeypatch.setattr(
        method_scores, "evaluate_folder", lambda folder, labels: (evaluated_folders.append(folder), original(folder))[1]
    )
    return evaluated_folders


def test_scores_of_all_folds_are_joined_and_kept(
    evaluated_folders: list[Path], dataset: Dataset, tmp_path: Path
) -> None:
    scores = score_method(SETTINGS, METHOD, dataset, tmp_path / "out")
    assert list(scores.index) == ["pair 0", "pair 1"]
    assert (scores["dice"] > scores["initial_dice"]).all()
    folders = [tmp_path / "out" / "ours" / f"fold_{fold}" for fold in (0, 1)]
    assert evaluated_folders == folders
    again = score_method(SETTINGS, METHOD, dataset, tmp_path / "out")
    pd.testing.assert_frame_equal(again, scores)
    assert evaluated_folders == folders
    label = dataset.case("Toy_0001_0001").label
    assert label is not None
    label.write_text("another annotation")
    score_method(SETTINGS, METHOD, dataset, tmp_path / "out")
    assert evaluated_folders == [*folders, *folders]
    assert set(read_label_scores(SETTINGS, METHOD, tmp_path / "out")["label"]) == {1, 2}


def test_a_method_that_failed_for_a_pair_has_no_scores(
    evaluated_folders: list[Path], dataset: Dataset, tmp_path: Path
) -> None:
    # These predictions list a pair that failed.
    write_predictions(tmp_path / "out" / "ours" / "fold_0", GRID, [3.0], uncertainty=False)
    with pytest.raises(UserError, match=r"^ours: 1 of 1 "):
        score_method(SETTINGS, METHOD, dataset, tmp_path / "out")
    assert evaluated_folders == []
