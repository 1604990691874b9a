from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from llmreg.errors import Ambiguous, MissingFile
from llmreg.training import checkpoints
from llmreg.training.finetuning import TransferReport, find_checkpoint, transfer_weights


class Small(nn.Module):
    def __init__(self, width: int, more: bool = False) -> None:
        super().__init__()
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)
        self.inner = nn.Parameter(torch.randn(4))
        self.outer = nn.Parameter(torch.randn(width))
        if more:
            self.extra = nn.Parameter(torch.randn(2))


def save(folder: Path, network: nn.Module, which: str = "final") -> Path:
    state = checkpoints.TrainingState(plans_digest="", llm_sha256="", configuration="half", fold="0", epochs=1)
    checkpoints.save_checkpoint(folder, which, state, network)
    return checkpoints.checkpoint_path(folder, which)


def test_tensors_of_the_same_name_and_shape_are_taken_over(tmp_path: Path) -> None:
    pretrained, network = Small(5, more=True), Small(6)
    path = save(tmp_path, pretrained)
    frozen, outer = network.frozen.clone(), network.outer.clone()
    report = transfer_weights(network, path)
    assert torch.equal(network.inner, pretrained.inner)
    assert torch.equal(network.outer, outer)
    assert torch.equal(network.frozen, frozen)
    assert (report.same, report.reshaped, report.missing, report.unused) == (("inner",), ("outer",), (), ("extra",))
    assert transfer_weights(Small(5, more=True), save(tmp_path / "less", Small(5))).missing == ("extra",)


def test_lora_of_other_layers_starts_anew(tmp_path: Path) -> None:
    pretrained, network = Small(5), Small(5)
    for model in (pretrained, network):
        model.lora_a = nn.Parameter(torch.randn(2))
    path = save(tmp_path, pretrained)
    assert transfer_weights(network, path).same == ("inner", "lora_a", "outer")
    network.llm_sha256 = "other"
    assert transfer_weights(network, path).reshaped == ("lora_a",)


def test_a_report_counts_and_names_the_tensors() -> None:
    report = TransferReport(("a", "b"), ("c",), (), ("d", "e", "f", "g"))
    start, reshaped, unused = str(report).split("; ")
    assert start.startswith("2 of 3")
    assert reshaped.startswith("1 ")
    assert reshaped.endswith("(c)")
    assert unused.startswith("4 ")
    assert unused.endswith("(d, e, f, ...)")


def test_a_model_is_a_checkpoint_a_fold_or_a_folder_with_one_fold(tmp_path: Path) -> None:
    path = save(tmp_path / "fold_0", Small(5))
    for location in (path, tmp_path / "fold_0", tmp_path):
        assert find_checkpoint(location) == path
    # A training that has not ended is no model to start from.
    save(tmp_path / "fold_2", Small(5), "latest")
    assert find_checkpoint(tmp_path) == path
    save(tmp_path / "fold_1", Small(5))
    with pytest.raises(Ambiguous) as several:
        find_checkpoint(tmp_path)
    assert several.value.candidates == tuple(str(tmp_path / f"fold_{fold}") for fold in (0, 1))
    with pytest.raises(MissingFile):
        find_checkpoint(tmp_path / "fold_9")
