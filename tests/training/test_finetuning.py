from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from llmreg.errors import UserError
from llmreg.training import checkpoints as checkpoint
from llmreg.training.finetuning import checkpoint_in, transfer_weights


class Small(nn.Module):
    def __init__(self, width: int, more: bool = False) -> None:
        super().__init__()
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)
        self.inner = nn.Parameter(torch.randn(4))
        self.outer = nn.Parameter(torch.randn(width))
        if more:
            self.extra = nn.Parameter(torch.randn(2))


def saved(folder: Path, network: nn.Module, which: str = "final") -> Path:
    state = checkpoint.State(plans_digest="", llm_sha256="", configuration="half", fold="0", epochs=1)
    checkpoint.save(folder, which, state, network)
    return checkpoint.path_of(folder, which)


def test_tensors_of_the_same_name_and_shape_are_taken_over(tmp_path: Path) -> None:
    there, here = Small(5, more=True), Small(6)
    path = saved(tmp_path, there)
    frozen, outer = here.frozen.clone(), here.outer.clone()
    found = transfer_weights(here, path)
    assert torch.equal(here.inner, there.inner)
    assert torch.equal(here.outer, outer)
    assert torch.equal(here.frozen, frozen)
    assert (found.same, found.reshaped, found.missing, found.unused) == (("inner",), ("outer",), (), ("extra",))
    assert str(found) == (
        "1 of 2 tensors were taken over; 1 of another shape or other layers there (outer); 1 there but not here (extra)"
    )
    assert transfer_weights(Small(5, more=True), saved(tmp_path / "less", Small(5))).missing == ("extra",)


def test_a_model_is_a_checkpoint_a_fold_or_a_folder_with_one_fold(tmp_path: Path) -> None:
    path = saved(tmp_path / "fold_0", Small(5))
    for place in (path, tmp_path / "fold_0", tmp_path):
        assert checkpoint_in(place) == path
    # A training that has not ended is no model to start from.
    saved(tmp_path / "fold_2", Small(5), "latest")
    assert checkpoint_in(tmp_path) == path
    saved(tmp_path / "fold_1", Small(5))
    with pytest.raises(UserError, match="several trained folds"):
        checkpoint_in(tmp_path)
    with pytest.raises(UserError, match="no trained fold"):
        checkpoint_in(tmp_path / "fold_9")
