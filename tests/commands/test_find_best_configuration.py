from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from llmreg.commands import find_best_configuration, predict

NAME = "Dataset001_Name"


def write_scores(results: Path, model: str, dice: float) -> None:
    folder = results / NAME / model / "fold_0" / "validation"
    folder.mkdir(parents=True)
    rows = [
        {
            "pair_id": pair,
            "label": 1,
            "name": "organ",
            "dice": dice,
            "initial_dice": 0.1,
            "hd95_mm": 2.0,
            "initial_hd95_mm": 9.0,
            "folding_percent": 0.0,
        }
        for pair in ("a", "b")
    ]
    pd.DataFrame(rows).to_csv(folder / "metrics.csv", index=False)


def test_the_best_model_is_told_as_a_command_that_its_parser_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("llmreg_home", str(tmp_path))
    for model, dice in (("llm_morph__default__half", 0.6), ("voxelmorph__mine__full", 0.8)):
        write_scores(tmp_path / "results", model, dice)
    assert find_best_configuration.main(["1", "-f", "fold_0"]) == 0
    (line,) = (text.strip() for text in capsys.readouterr().err.splitlines() if "llmreg_predict" in text)
    options = predict.build_parser().parse_args(line.split()[1:])
    assert (options.dataset, options.plans, options.configuration, options.network) == (
        "1",
        "mine",
        "full",
        "voxelmorph",
    )
    (written,) = (tmp_path / "results" / NAME).glob("*.json")
    assert "voxelmorph" in json.dumps(json.loads(written.read_text()))


def test_folds_that_no_model_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("llmreg_home", str(tmp_path))
    write_scores(tmp_path / "results", "llm_morph__default__half", 0.6)
    assert find_best_configuration.main(["1", "-f", "3"]) == 2
