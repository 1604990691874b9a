from __future__ import annotations

from pathlib import Path

import pytest
from recorded_calls import record_calls
from tiny_predictions import write_predictions

from llmreg.commands import evaluate
from llmreg.geometry.grid import Grid


def test_every_option_reaches_the_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmreg.evaluation.summary.format_summary", lambda summary: "")
    calls = record_calls(monkeypatch, "llmreg.evaluation.evaluate.evaluate_folder", {})
    words = "-i in -l labels -o out --label_interpolation linear --landmarks points --convention ras --num_processes 3"
    assert evaluate.main(words.split()) == 0
    assert calls == [
        {
            "predictions": Path("in"),
            "labels": Path("labels"),
            "output": Path("out"),
            "num_processes": 3,
            "label_interpolation": "linear",
            "landmarks": Path("points"),
            "convention": "ras",
        }
    ]


def test_scores_lie_beside_the_predictions_and_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = Grid.from_centre((24, 22, 20), (1.5,) * 3, (0.0, 0.0, 0.0))
    folder = write_predictions(tmp_path / "out", grid, [3.0], uncertainty=False)
    (folder / "metrics.csv").unlink()
    assert evaluate.main(["-i", str(folder), "--num_processes", "1"]) == 0
    assert (folder / "metrics.csv").is_file()
    assert str(folder) in capsys.readouterr().out
