from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmreg.comparison.benchmark_record import BENCHMARK_FILE, BenchmarkRecord, PredictionRun
from llmreg.errors import UnreadableFile

RECORD = BenchmarkRecord(dataset="2", folds=["0"], study={"minutes": None}, judged_by="abc", methods={"a": "A"})


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert BenchmarkRecord.read(tmp_path) is None
    RECORD.write(tmp_path)
    assert BenchmarkRecord.read(tmp_path) == RECORD
    content = json.loads((tmp_path / BENCHMARK_FILE).read_text())
    assert list(content) == ["dataset", "folds", "study", "judged_by", "methods", "failed"]


def test_the_records_of_the_first_version_are_read(tmp_path: Path) -> None:
    (tmp_path / BENCHMARK_FILE).write_text(
        json.dumps({"folds": ["test"], "methods": {"a": "A"}, "failed": {"b": "no"}})
    )
    record = BenchmarkRecord.read(tmp_path)
    assert record is not None
    assert (record.folds, record.failed) == (["test"], {"b": "no"})


@pytest.mark.parametrize("content", ["[]", '{"methods": 3, "folds": ["0"]}', '{"methods": {}}'])
def test_something_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / BENCHMARK_FILE).write_text(content)
    with pytest.raises(UnreadableFile) as error:
        BenchmarkRecord.read(tmp_path)
    assert error.value.path == tmp_path / BENCHMARK_FILE


def test_an_unknown_time_is_not_written(tmp_path: Path) -> None:
    for spent in (None, 0.0, 12.5):
        run = PredictionRun(about={"flags": []}, spent=spent)
        run.write(tmp_path)
        assert PredictionRun.read(tmp_path) == run
        assert ("spent" in json.loads((tmp_path / BENCHMARK_FILE).read_text())) == (spent is not None)
