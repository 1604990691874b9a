from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from llmreg.networks import compilation
from llmreg.networks.compilation import compiled


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 3, 3, padding=1)

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        result: Tensor = self.conv(torch.cat([moving, fixed], dim=1))
        return result


def test_a_compiled_network_is_the_same_with_the_same_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """With PyTorch's own tracing, and without a compiler behind it, which takes minutes."""
    whole = torch.compile
    monkeypatch.setattr(compilation.torch, "compile", lambda network, **how: whole(network, backend="eager", **how))
    network = Small()
    faster = compiled(network, (4, 5, 6), torch.device("cpu"), "none")
    assert faster is not network
    moving, fixed = torch.rand(2, 1, 1, 4, 5, 6)
    torch.testing.assert_close(faster(moving, fixed), network(moving, fixed))
    # Tried out without leaving a gradient behind.
    assert network.conv.weight.grad is None
    faster(moving, fixed).sum().backward()
    assert network.conv.weight.grad is not None


def test_a_network_that_fails_in_the_backward_pass_is_itself(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Small):
        def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
            found = super().forward(moving, fixed)
            found.register_hook(lambda gradient: 1 / 0)
            return found

    network = Broken()
    assert compiled(network, (4, 4, 4), torch.device("cpu"), "none") is network
    assert "it runs as it is" in caplog.text
