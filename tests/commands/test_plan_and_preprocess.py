from __future__ import annotations

import pytest
from recorded_calls import record_calls

from llmreg.commands import plan_and_preprocess


def test_every_dataset_is_planned_then_preprocessed(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = record_calls(monkeypatch, "llmreg.api.plan")
    volumes = record_calls(monkeypatch, "llmreg.api.preprocess")
    words = "-d 1 2 -c full --memory_gb 4 --overwrite --clean --verify_dataset_integrity --num_processes 3"
    assert plan_and_preprocess.main(words.split()) == 0
    assert [call["dataset"] for call in plans] == [call["dataset"] for call in volumes] == ["1", "2"]
    plan = plans[0]
    assert (plan["memory_gb"], plan["overwrite"], plan["verify"], plan["clean"]) == (4.0, True, True, True)
    assert (plan["processes"], plan["overrides"].configuration) == (3, "full")
    assert (volumes[0]["plans"], volumes[0]["clean"], volumes[0]["processes"]) == ("default", True, 3)
