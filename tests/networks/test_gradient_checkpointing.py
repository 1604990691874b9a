from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llmreg.networks.gradient_checkpointing import call_with_checkpointing


@pytest.mark.parametrize("when", [True, False])
def test_the_function_is_called_again_in_the_backward_pass_only_if_asked(when: bool) -> None:
    calls: list[Tensor] = []

    def cube(values: Tensor) -> Tensor:
        calls.append(values)
        return values**3

    inputs = torch.tensor([1.0, 2.0], requires_grad=True)
    output = call_with_checkpointing(cube, inputs, when=when)
    assert torch.equal(output, torch.tensor([1.0, 8.0]))
    assert len(calls) == 1
    output.sum().backward()
    assert len(calls) == (2 if when else 1)
    assert torch.equal(inputs.grad, torch.tensor([3.0, 12.0]))
