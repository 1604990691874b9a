from __future__ import annotations

import pytest
from recorded_calls import record_calls

from llmreg.commands import plan


def test_every_dataset_is_planned_with_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = record_calls(monkeypatch, "llmreg.preprocessing.preparation.plan_dataset")
    words = "-d 1 2 -c half --spacing 1 2 3 --memory_gb 4 --overwrite --num_processes 3"
    assert plan.main(words.split()) == 0
    assert [call["dataset_id"] for call in calls] == ["1", "2"]
    assert {(call["num_processes"], call["overwrite"], call["memory_gb"]) for call in calls} == {(3, True, 4.0)}
    assert calls[0]["overrides"].configuration == "half"
    assert calls[0]["overrides"].spacing == (1.0, 2.0, 3.0)
