from __future__ import annotations

from pathlib import Path

import pytest
from recorded_calls import record_calls
from zipped_models import NAME, write_model

from llmreg.commands import export_model


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_model(tmp_path / "results" / NAME)
    monkeypatch.setenv("llmreg_home", str(tmp_path))
    return tmp_path / "results" / NAME


def test_a_zip_that_exists_is_replaced_only_when_asked_for(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-m", str(model), "-o", str(tmp_path / "model.zip")]
    assert export_model.main(words) == 0
    content = (tmp_path / "model.zip").read_bytes()
    capsys.readouterr()
    assert export_model.main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "model.zip").read_bytes() == content
    assert export_model.main([*words, "--overwrite"]) == 0


def test_the_chosen_folds_are_exported(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = record_calls(monkeypatch, "llmreg.sharing.exporting.export_model")
    # The recorded call exports nothing, so the message that follows fails.
    with pytest.raises(AttributeError):
        export_model.main(["-m", str(model), "-f", "1", "-o", str(tmp_path / "model.zip")])
    (call,) = calls
    assert list(call["model"].folds) == ["1"]
    assert (call["model"].folder, call["overwrite"]) == (model, False)
