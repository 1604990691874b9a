"""A model that is exported, and the results folder that it is installed into."""

from __future__ import annotations

from pathlib import Path

import pytest
from zipped_models import (
    NAME,
    write_model,
)

from llmreg.inference.models import load_model
from llmreg.sharing import exporting


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as training leaves it, with two folds."""
    folder = tmp_path_factory.mktemp("exporter") / "results" / NAME
    write_model(folder)
    return folder


@pytest.fixture(autouse=True)
def no_language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the layers of language models that this computer may have."""
    monkeypatch.setenv("llmreg_llm", str(tmp_path / "no-llm"))


@pytest.fixture(scope="module")
def good_zip(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a zip of the model with its first fold."""
    target = tmp_path_factory.mktemp("exported") / "model.zip"
    exporting.export_model(load_model(folder, ["0"]), target)
    return target.read_bytes()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The results folder of somebody else, with a model of another dataset."""
    (tmp_path / "own/results/Dataset002_B/llm_morph__default__half").mkdir(parents=True)
    (tmp_path / "own/results/Dataset002_B/llm_morph__default__half/plans.json").write_text("{}")
    return tmp_path / "own/results"
