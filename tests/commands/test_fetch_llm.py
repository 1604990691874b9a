from __future__ import annotations

from pathlib import Path

import pytest
from recorded_calls import record_calls

from llmreg.commands import fetch_llm


def test_the_layers_of_the_source_go_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("llmreg_home", str(tmp_path))
    selected = record_calls(monkeypatch, "llmreg.networks.language_models.loading.select_layers", "settings")
    fetched = record_calls(monkeypatch, "llmreg.networks.language_models.loading.fetch")
    assert fetch_llm.main(["owner/name", "--layers", "3", "4"]) == 0
    assert (selected[0]["source"], selected[0]["layers"]) == ("owner/name", ["3", "4"])
    assert fetched == [{"settings": "settings", "folder": tmp_path / "llm"}]
