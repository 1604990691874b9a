from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from llmreg.errors import Ambiguous, MissingFile, OtherPlans
from llmreg.training import checkpoints
from llmreg.training.checkpoints import TrainingState, checkpoint_path, save_checkpoint
from llmreg.training.options import TrainingOptions
from llmreg.training.resuming import (
    TransferReport,
    find_checkpoint,
    remove_leftovers,
    resume_or_start,
    transfer_weights,
)
from llmreg.training.training_errors import HoldsTraining

INITIAL = TrainingState(
    plans_digest="p", llm_sha256="", configuration="half", fold="0", epochs=7, processes=1, pairs_sha256="q"
)


def make_parts(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    network = nn.Conv3d(1, 2, 3)
    return network, torch.optim.Adam(network.parameters())


def save_training(folder: Path, **changes: object) -> tuple[nn.Module, TrainingState]:
    network, optimizer = make_parts(0)
    network(torch.ones(1, 1, 4, 4, 4)).sum().backward()
    optimizer.step()
    state = INITIAL.model_copy(update={"epoch": 3, "epochs": 5, "step": 2, **changes})
    save_checkpoint(folder, "latest", state, network, optimizer)
    return network, state


def test_without_a_checkpoint_a_training_starts(tmp_path: Path) -> None:
    network, optimizer = make_parts(1)
    weights = network.weight.clone()
    for resume in (False, True):
        assert resume_or_start(tmp_path, INITIAL, network, optimizer, TrainingOptions(resume=resume)) == INITIAL
    assert torch.equal(network.weight, weights)


def test_a_training_that_starts_takes_over_pretrained_weights(tmp_path: Path) -> None:
    pretrained, _ = save_training(tmp_path / "other")
    network, optimizer = make_parts(1)
    options = TrainingOptions(pretrained=checkpoint_path(tmp_path / "other", "latest"))
    assert resume_or_start(tmp_path, INITIAL, network, optimizer, options) == INITIAL
    assert torch.equal(network.weight, pretrained.weight)
    assert not optimizer.state


@pytest.mark.parametrize(("epochs", "expected"), [(None, 5), (9, 9), (2, 3)])
def test_a_training_resumes_to_the_asked_number_of_epochs(tmp_path: Path, epochs: int | None, expected: int) -> None:
    trained, state = save_training(tmp_path)
    network, optimizer = make_parts(1)
    options = TrainingOptions(resume=True, epochs=epochs)
    resumed = resume_or_start(tmp_path, INITIAL, network, optimizer, options)
    assert resumed == state.model_copy(update={"epochs": expected})
    assert torch.equal(network.weight, trained.weight)
    assert len(optimizer.state) == 2


def test_trainings_that_must_not_be_resumed(tmp_path: Path) -> None:
    save_training(tmp_path)
    with pytest.raises(HoldsTraining) as refusal:
        resume_or_start(tmp_path, INITIAL, *make_parts(1), TrainingOptions())
    assert refusal.value.folder == tmp_path
    other_state = INITIAL.model_copy(update={"plans_digest": "other"})
    with pytest.raises(OtherPlans):
        resume_or_start(tmp_path, other_state, *make_parts(1), TrainingOptions(resume=True))


@pytest.mark.parametrize("changes", [{"processes": 2}, {"pairs_sha256": "other"}, {"pairs_sha256": None}, {}])
def test_what_a_resumed_training_sees_otherwise_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, object]
) -> None:
    save_training(tmp_path, **changes)
    with caplog.at_level(logging.WARNING):
        state = resume_or_start(tmp_path, INITIAL, *make_parts(1), TrainingOptions(resume=True))
    assert len(caplog.records) == (changes not in ({}, {"pairs_sha256": None}))
    assert state.processes == INITIAL.processes


def test_leftovers_are_removed(tmp_path: Path) -> None:
    lasting_files = ["checkpoint_best.safetensors", "checkpoint_latest.json", "debug.json"]
    leftovers = [".partial-1-checkpoint_latest.safetensors", ".tmpAbc"]
    final = ["checkpoint_final.safetensors", "checkpoint_final.json"]
    for name in (*lasting_files, *leftovers, *final):
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path, INITIAL.model_copy(update={"epoch": 7}))
    assert {path.name for path in tmp_path.iterdir()} == {*lasting_files, *final}
    # A training that becomes longer has no final checkpoint any more.
    remove_leftovers(tmp_path, INITIAL.model_copy(update={"epoch": 6}))
    assert {path.name for path in tmp_path.iterdir()} == {*lasting_files}


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


def test_what_adapts_other_layers_starts_anew(tmp_path: Path) -> None:
    pretrained, network = Small(5), Small(5)
    for model in (pretrained, network):
        model.lora_a = nn.Parameter(torch.randn(2))
    path = save(tmp_path, pretrained)
    assert transfer_weights(network, path).same == ("inner", "lora_a", "outer")
    network.llm_sha256 = "other"
    assert transfer_weights(network, path).same == ("inner", "lora_a", "outer")
    network.adaptation = "lora_"
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
    with pytest.raises(Ambiguous) as refusal:
        find_checkpoint(tmp_path)
    assert refusal.value.candidates == tuple(str(tmp_path / f"fold_{fold}") for fold in (0, 1))
    with pytest.raises(MissingFile):
        find_checkpoint(tmp_path / "fold_9")
