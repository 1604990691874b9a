from __future__ import annotations

import pytest
from recorded_calls import record_calls

from llmreg.commands import extract_fingerprint


def test_every_dataset_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = record_calls(monkeypatch, "llmreg.preprocessing.preparation.fingerprint_dataset")
    assert extract_fingerprint.main(["-d", "1", "Dataset002_Name", "--num_processes", "3"]) == 0
    assert [(call["dataset_id"], call["num_processes"]) for call in calls] == [("1", 3), ("Dataset002_Name", 3)]
