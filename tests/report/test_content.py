from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from scored_rows import rows_of_two_pairs
from tiny_model_folder import make_plans, write_model
from tiny_predictions import write_benchmark, write_predictions

from llmreg.errors import BadArgument, MissingFile, UnreadableFile
from llmreg.evaluation.summary import write_results
from llmreg.geometry.grid import Grid
from llmreg.report.content import read_source


@pytest.fixture(scope="module")
def predictions(tmp_path_factory: pytest.TempPathFactory, upright: Grid) -> Path:
    return write_predictions(tmp_path_factory.mktemp("content") / "out", upright, [4.0], 0.5, uncertainty=False)


def test_predictions_are_described_by_their_record_and_have_stages(predictions: Path) -> None:
    source = read_source(predictions)
    assert source.kind == "predictions"
    assert dict(source.about) == {
        "Model": "Dataset999_Demo/tiny",
        "Folds": "0",
        "Options": "refine 30",
        "Pairs": "1",
    }
    assert list(source.by_pair) == ["Initial", "Registered"]
    before, after = (table["dice"].mean() for table in source.by_pair.values())
    assert before < after
    assert set(source.by_label["Registered"]["label"]) == {1, 2}
    assert [subject for subject, _ in source.failed] == ["pair 99"]


def test_a_benchmark_has_its_methods_and_their_shared_start(tmp_path: Path, upright: Grid) -> None:
    folder = write_benchmark(tmp_path / "benchmark", upright, [4.0])
    source = read_source(folder)
    assert source.kind == "benchmark"
    assert [method.title for method in source.shown] == list(source.by_pair)[1:]
    assert next(iter(source.by_pair)) == "Initial"
    assert "ants" in dict(source.failed)


def test_a_benchmark_without_tables_is_compared_as_a_whole(tmp_path: Path, upright: Grid) -> None:
    folder = write_benchmark(tmp_path / "benchmark", upright, [4.0])
    (table,) = read_source(folder).tables
    assert len(table.rows) == 3
    content = json.loads((folder / "benchmark.json").read_text())
    (folder / "benchmark.json").write_text(json.dumps(content | {"methods": {}}))
    assert read_source(folder).tables == ()


def test_other_folders_are_refused(predictions: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFile):
        read_source(tmp_path / "nowhere")
    with pytest.raises(UnreadableFile):
        read_source(tmp_path)
    with pytest.raises(BadArgument) as error:
        read_source(predictions, predictions)
    assert error.value.argument == "predictions"


def test_a_pair_that_several_folds_validate_counts_once_with_its_mean(tmp_path: Path) -> None:
    folder = write_model(tmp_path, make_plans(), ("0", "1"))
    rows = rows_of_two_pairs()
    write_results(rows, folder / "fold_0" / "validation")
    write_results([row | {"dice": row["dice"] / 2} for row in rows], folder / "fold_1" / "validation")
    source = read_source(folder)
    assert source.kind == "model"
    once = pd.DataFrame(rows).groupby("pair_id")["dice"].mean()
    registered = source.by_pair["Registered"]
    assert list(registered.index) == list(once.index)
    assert registered["dice"].tolist() == pytest.approx((0.75 * once).tolist())
    assert source.by_pair["Initial"].index.is_unique
    assert len(source.tables) == 1


def test_a_damaged_table_of_a_model_is_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path, make_plans()) / "fold_0" / "validation"
    folder.mkdir()
    (folder / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UnreadableFile) as refusal:
        read_source(folder.parents[1])
    assert refusal.value.path == folder / "metrics.csv"
