from __future__ import annotations

from pathlib import Path

import pytest
from tiny_predictions import write_benchmark, write_predictions
from tiny_study import NAME, check_refusal, model

from llmreg.commands import report
from llmreg.geometry.grid import Grid
from llmreg.report import stacks

GRID = Grid.from_centre((24, 22, 20), (1.5,) * 3, (0.0, 0.0, 0.0))


@pytest.fixture(autouse=True)
def few_slices(monkeypatch) -> None:
    monkeypatch.setattr(stacks, "MOST_SLICES", 3)


def test_the_page_of_predictions_lies_beside_them(tmp_path: Path, capsys) -> None:
    folder = write_predictions(tmp_path / "out", GRID, [3.0])
    assert report.main([str(folder), "--pairs", "1"]) == 0
    assert f"{folder / 'report.html'} (" in capsys.readouterr().out
    assert (folder / "report.html").stat().st_size > 10_000


def test_a_dataset_means_its_benchmark(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("llmreg_home", str(tmp_path))
    (tmp_path / "results" / NAME).mkdir(parents=True)
    assert report.main(["-d", "999"]) == 2
    check_refusal(capsys, "holds no benchmark", "llmreg_benchmark -d 999")
    write_benchmark(tmp_path / "results" / NAME / "benchmark", GRID, [3.0])
    assert report.main(["-d", "999", "-o", str(tmp_path / "page.html"), "--num_processes", "1"]) == 0
    assert "ANTs is not installed" in (tmp_path / "page.html").read_text()


def test_a_model_is_reported_with_its_plans_and_curves(environment: Path, tmp_path: Path) -> None:
    page = tmp_path / "model.html"
    folder = write_predictions(tmp_path / "out", GRID, [3.0])
    for more, slices in (([], False), (["--predictions", str(folder)], True)):
        assert report.main([str(model(environment)), "-o", str(page), *more]) == 0
        text = page.read_text()
        for said in ("llm_morph", "learning rate", "Registered", "Training curves by epoch"):
            assert said in text
        assert ('id="pictures-0"' in text) == slices


def test_what_is_refused(tmp_path: Path, capsys) -> None:
    sentence = "Name one folder"
    for arguments, said in (([], sentence), (["out", "-d", "2"], sentence), ([str(tmp_path)], "neither predictions")):
        assert report.main(arguments) == 2
        check_refusal(capsys, said)
