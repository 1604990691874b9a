from __future__ import annotations

import json
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
import torch

from llmreg.training import environment


def test_what_a_training_ran_on_is_written_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/llmreg_train", "1", "fold0"])
    environment.write_debug(tmp_path, torch.device("cpu"), {"plans": {"seed": 3}})
    environment.write_debug(tmp_path, torch.device("cpu"), {"plans": {"seed": 3}})
    content = json.loads((tmp_path / "debug.json").read_text())
    assert content["plans"] == {"seed": 3}
    assert len(content["runs"]) == 2
    run = content["runs"][1]
    assert run["command"] == ["llmreg_train", "1", "fold0"]
    assert (run["device"], run["gpu"]) == ("cpu", None)
    assert run["packages"]["torch"] == metadata.version("torch")
    assert {"numpy", "SimpleITK", "torch"} <= run["packages"].keys()
    assert "pytest" not in run["packages"]


def record_revision(folder: Path) -> str | None:
    environment.write_debug(folder, torch.device("cpu"), {})
    revision: str | None = json.loads((folder / "debug.json").read_text())["runs"][-1]["git_revision"]
    return revision


def test_the_revision_says_whether_files_were_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "llmreg" / "training"
    package.mkdir(parents=True)
    source = package / "environment.py"
    source.write_text("1\n")
    monkeypatch.setattr(environment, "__file__", str(source))
    assert record_revision(tmp_path) is None
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    clean = record_revision(tmp_path)
    assert clean is not None
    assert len(clean) == 40
    source.write_text("2\n")
    assert record_revision(tmp_path) == clean + "+"
