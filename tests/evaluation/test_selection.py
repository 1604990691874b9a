from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from llmreg.commands.find_best_configuration import predict_command
from llmreg.errors import BadArgument, NotPrepared, UserError
from llmreg.evaluation.selection import select_best, write_selection


def write_scores(results: Path, model: str, fold: str, pairs: range, dice: float, hd95: float, folding: float) -> None:
    """Write a fold's metrics: two labels a pair, around the given means, worse for every model in the same pairs."""
    hard = np.random.default_rng(0).normal(0, 1, 100)
    rows = [
        {
            "pair_id": f"p{pair}",
            "label": label,
            "dice": dice - 0.05 * hard[pair] + 0.01 * label,
            "hd95_mm": hd95 + hard[pair],
            "folding_percent": folding + 0.001 * abs(hard[pair]),
        }
        for pair in pairs
        for label in (1, 2)
    ]
    folder = results / f"llm_morph__{model}__half" / f"fold_{fold}" / "validation"
    folder.mkdir(parents=True)
    pd.DataFrame(rows).to_csv(folder / "metrics.csv", index=False)


def test_points_count_significant_differences_in_three_metrics(tmp_path: Path) -> None:
    for fold, pairs in (("0", range(10)), ("1", range(10, 20))):
        write_scores(tmp_path, "good", fold, pairs, 0.8, 5, 0.1)
        write_scores(tmp_path, "folding", fold, pairs, 0.8, 5, 2.0)
        write_scores(tmp_path, "poor", fold, pairs, 0.7, 6, 0.1)
    selection = select_best(tmp_path)
    assert (selection.folds, selection.num_pairs) == (("0", "1"), 20)
    points = {candidate.model.split("__")[1]: candidate.points for candidate in selection.candidates}
    # The first model folds less than the second (1) and has better Dice and HD95 than the third (2). The second has
    # better Dice and HD95 than the third, too (2), and folds more than both (-2).
    assert points == {"good": 3, "folding": 0, "poor": -3}
    assert selection.candidates[0].model == "llm_morph__good__half"
    assert selection.candidates[0].dice == pytest.approx(0.815, abs=0.03)
    content = json.loads(write_selection(tmp_path, selection, "predict").read_text())
    assert (content["best"], content["command"]) == (selection.candidates[0].model, "predict")
    assert selection.table().splitlines()[2].startswith("llm_morph__good__half")


def test_models_without_validation_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_scores(tmp_path, "good", "0", range(3), 0.8, 5, 0.1)
    other = tmp_path / "llm_morph__other__half" / "fold_0"
    other.mkdir(parents=True)
    (other / "checkpoint_final.safetensors").touch()
    assert [candidate.model for candidate in select_best(tmp_path).candidates] == ["llm_morph__good__half"]
    assert "llm_morph__other__half" in caplog.text
    assert "good" not in caplog.text.split("With")[0]


def test_the_command_names_the_network_where_there_are_several(tmp_path: Path) -> None:
    write_scores(tmp_path, "default", "0", range(3), 0.70, 5, 0.1)
    (tmp_path / "llm_morph__default__half").rename(tmp_path / "voxelmorph__default__half")
    write_scores(tmp_path, "default", "0", range(3), 0.71, 5, 0.1)
    selection = select_best(tmp_path)
    assert selection.has_several_networks
    command = predict_command(selection, "3")
    assert command == "llmreg_predict -i in/ -o out/ -d 3 -p default -c half --network llm_morph"


def test_few_pairs_tell_nothing_significant_so_dice_decides(tmp_path: Path) -> None:
    write_scores(tmp_path, "a", "0", range(3), 0.70, 5, 0.1)
    write_scores(tmp_path, "b", "0", range(3), 0.71, 9, 0.1)
    selection = select_best(tmp_path)
    assert [(candidate.model, candidate.points) for candidate in selection.candidates] == [
        ("llm_morph__b__half", 0),
        ("llm_morph__a__half", 0),
    ]


def test_only_folds_and_pairs_in_common_are_compared(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_scores(tmp_path, "a", "0", range(8), 0.7, 5, 0.1)
    write_scores(tmp_path, "a", "1", range(8, 16), 0.1, 5, 0.1)
    write_scores(tmp_path, "b", "0", range(2, 10), 0.7, 5, 0.1)
    selection = select_best(tmp_path)
    assert (selection.folds, selection.num_pairs) == (("0",), 6)
    assert select_best(tmp_path, ["1"]).candidates[0].model == "llm_morph__a__half"
    assert "llm_morph__b__half" in caplog.text


def test_nothing_to_compare_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotPrepared):
        select_best(tmp_path)
    write_scores(tmp_path, "a", "0", range(4), 0.7, 5, 0.1)
    write_scores(tmp_path, "b", "1", range(4), 0.7, 5, 0.1)
    with pytest.raises(BadArgument) as refusal:
        select_best(tmp_path)
    assert refusal.value.argument == "folds"
    write_scores(tmp_path, "b", "0", range(4, 8), 0.7, 5, 0.1)
    with pytest.raises(UserError, match="different pairs"):
        select_best(tmp_path)
