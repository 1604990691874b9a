from __future__ import annotations

import pytest
from recorded_calls import record_calls

from llmreg.commands import preprocess


def test_every_dataset_is_preprocessed_by_the_named_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = record_calls(monkeypatch, "llmreg.preprocessing.preparation.preprocess_dataset")
    assert preprocess.main(["-d", "1", "2", "-p", "paper", "--num_processes", "3"]) == 0
    named = [(call["dataset_id"], call["plans_name"], call["num_processes"], call["clean"]) for call in calls]
    assert named == [("1", "paper", 3, False), ("2", "paper", 3, False)]
