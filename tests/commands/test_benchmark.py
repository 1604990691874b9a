"""llmreg_benchmark on the tiny study."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from tiny_study import NAME, model, refused

from llmreg.benchmark import peers
from llmreg.commands import benchmark


@pytest.fixture
def output(environment: Path) -> Path:
    folder = environment / "results" / NAME / "benchmark"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def written(output: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in output.glob("*/fold_*/*.nii.gz")}


def test_trained_models_are_reused_and_what_cannot_run_is_a_row(
    environment: Path, output: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    arguments = ["-d", "999", "-p", "tiny", "--device", "cpu", "--methods", "initial", "greedy", "llm_morph"]
    assert benchmark.main(arguments) == 0
    shown = capfd.readouterr().out
    assert "greedy is not installed: pip install picsl-greedy" in shown
    table = pd.read_csv(output / "comparison.csv").set_index("method")
    assert list(table.index) == ["Initial", "Pre-aligned", "LLM-Morph", "greedy"]
    scored = pd.read_csv(output / "llm_morph" / "fold_0" / "metrics.csv").groupby("pair_id").mean(numeric_only=True)
    assert table.loc["LLM-Morph", "dice_mean"] == pytest.approx(scored["dice"].mean())
    assert table.loc["Initial", "dice_mean"] == pytest.approx(scored["initial_dice"].mean())
    assert table.loc["LLM-Morph", "seconds_mean"] > 0
    for suffix in (".md", ".tex", "_structures.png"):
        assert (output / f"comparison{suffix}").stat().st_size > 0
    kept = json.loads((output / "benchmark.json").read_text())
    assert kept["failed"].keys() == {"greedy"}
    # Other folds or minutes would be compared with what they cannot be compared with.
    assert benchmark.main([*arguments, "--minutes", "1"]) == 2
    # Again, nothing is done twice.
    before = written(output)
    assert before
    assert benchmark.main(arguments) == 0
    assert written(output) == before
    # Of a training that was changed since, everything is.
    checkpoint = model(environment) / "fold_0" / "checkpoint_final.safetensors"
    checkpoint.touch()
    assert benchmark.main(arguments) == 0
    assert written(output) != before


def test_mistakes_are_one_sentence(environment: Path, output: Path, capsys) -> None:
    assert benchmark.main(["-d", "999", "-p", "tiny", "--methods", "demons"]) == 2
    refused(capsys, "There is no method 'demons'")
    assert benchmark.main(["-d", "999", "-p", "tiny", "--methods", "llm_morph", "--folds", "test"]) == 2
    refused(capsys, "no labelled pairs to judge by in fold test")
    assert not list(output.glob("*/fold_*/*.nii.gz"))
