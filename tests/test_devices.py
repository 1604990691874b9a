from __future__ import annotations

import pytest
import torch

from llmreg.devices import peak_memory


def test_the_gpus_memory_stands_beside_the_computers_where_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30)
    assert peak_memory(torch.device("cpu")).keys() == {"peak_memory_gb"}
    found = peak_memory(torch.device("cuda"))
    assert found["peak_gpu_memory_gb"] == 3
    assert 0.01 < found["peak_memory_gb"] < 100
