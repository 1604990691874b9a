"""Compiling a network, and the state that a checkpoint holds."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from llmreg.networks.factory import compile_or_keep, load_trainable_state, trainable_state
from llmreg.networks.registration_network import GridNetwork, RegistrationNetwork

CPU = torch.device("cpu")


class Small(RegistrationNetwork):
    def __init__(self) -> None:
        super().__init__((4, 5, 6), "displacement")
        self.conv = nn.Conv3d(2, 3, 3, padding=1)

    def predict(self, moving: Tensor, fixed: Tensor) -> Tensor:
        result: Tensor = self.conv(torch.cat([moving, fixed], dim=1))
        return result


def test_a_compiled_network_gives_the_same_with_the_same_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own tracing runs, without a compiler behind it, which takes minutes."""
    compile_whole: Callable[..., nn.Module] = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network, **options: compile_whole(network, backend="eager", **options))
    small = Small()
    network = GridNetwork(small, 2)
    compiled = compile_or_keep(network, CPU, "none")
    assert compiled is not network
    moving, fixed = torch.rand(2, 1, 1, 8, 10, 12)
    torch.testing.assert_close(compiled(moving, fixed), network(moving, fixed))
    # Trying it out has left no gradient behind.
    assert small.conv.weight.grad is None
    compiled(moving, fixed).full.sum().backward()
    assert small.conv.weight.grad is not None


def test_a_network_that_fails_in_the_backward_pass_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Small):
        def predict(self, moving: Tensor, fixed: Tensor) -> Tensor:
            flow = super().predict(moving, fixed)
            flow.register_hook(lambda gradient: 1 / 0)
            return flow

    network = GridNetwork(Broken(), 1)
    with caplog.at_level(logging.WARNING):
        assert compile_or_keep(network, CPU, "none") is network
    warnings = [record for record in caplog.records if record.name == compile_or_keep.__module__]
    assert len(warnings) == 1


def test_the_trained_state_leaves_frozen_weights_out_and_fits_its_own_network_alone() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1).requires_grad_(requires_grad=False))
    state = {name: torch.full_like(value, 2.0) for name, value in trainable_state(network).items()}
    assert state.keys() == {"0.weight", "0.bias"}
    before = network[1].weight.clone()
    load_trainable_state(network, state)
    assert all(torch.equal(value, state[name]) for name, value in trainable_state(network).items())
    assert torch.equal(network[1].weight, before)
    wrong = ({"0.weight": state["0.weight"]}, state | {"2.bias": before}, state | {"0.bias": torch.zeros(4)})
    for other in wrong:
        with pytest.raises(ValueError, match=r"0\.bias|2\.bias"):
            load_trainable_state(network, {name: value + 1 for name, value in other.items()})
        assert torch.equal(network[0].weight, state["0.weight"])
