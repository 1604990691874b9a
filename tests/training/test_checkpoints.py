from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from llmreg.errors import NotPrepared, UnreadableFile
from llmreg.training.checkpoints import (
    CheckpointWriter,
    TrainingState,
    checkpoint_path,
    load_checkpoint,
    read_state,
    read_tensors,
    save_checkpoint,
)

STATE = TrainingState(plans_digest="p", llm_sha256="", configuration="half", fold="0", epochs=1, step=1)


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(2, 4, 3), nn.Conv3d(4, 3, 3)).to(memory_format=torch.channels_last_3d)


def take_step(network: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    image = torch.rand(1, 2, 7, 8, 9, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    network(image).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("fused", [True, False])
def test_a_network_resumes_bit_by_bit_however_its_weights_lie_in_memory(tmp_path: Path, fused: bool) -> None:
    undisturbed, interrupted, resumed = make_network(), make_network(), make_network()
    optimizers = [
        torch.optim.Adam(network.parameters(), lr=0.01, fused=fused) for network in (undisturbed, interrupted, resumed)
    ]
    for seed in range(3):
        take_step(undisturbed, optimizers[0], seed)
    take_step(interrupted, optimizers[1], 0)
    save_checkpoint(tmp_path, "latest", STATE, interrupted, optimizers[1])
    assert load_checkpoint(checkpoint_path(tmp_path, "latest"), resumed, optimizers[2]) == STATE
    for seed in (1, 2):
        take_step(resumed, optimizers[2], seed)
    for expected, actual in zip(undisturbed.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(expected, actual)
        assert expected.stride() == actual.stride()


def test_the_state_is_in_the_header_and_beside_the_tensors(tmp_path: Path) -> None:
    network = make_network()
    save_checkpoint(tmp_path, "best", STATE, network)
    path = checkpoint_path(tmp_path, "best")
    assert read_state(path) == STATE == TrainingState.model_validate_json(path.with_suffix(".json").read_text())
    assert read_tensors(path).keys() == network.state_dict().keys()
    # Keys of other versions are ignored.
    assert TrainingState.model_validate(STATE.model_dump() | {"torch_rng": "00"}) == STATE


def test_checkpoints_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    network = make_network()
    path = checkpoint_path(tmp_path, "final")
    with pytest.raises(NotPrepared) as missing:
        read_state(path)
    assert (missing.value.path, missing.value.step) == (path, "train")
    save_checkpoint(tmp_path, "final", STATE.model_copy(update={"llm_sha256": "a" * 64}), network)
    network.llm_sha256 = "b" * 64  # type: ignore[assignment]
    with pytest.raises(UnreadableFile, match=r"aaaaaaaaaaaa, here bbbbbbbbbbbb\)") as mismatch:
        load_checkpoint(path, network)
    assert mismatch.value.path == path
    with pytest.raises(UnreadableFile) as misfit:
        load_checkpoint(path, nn.Linear(2, 3))
    assert misfit.value.path == path
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UnreadableFile) as damaged:
        read_state(path)
    assert damaged.value.path == path


def test_a_checkpoint_is_due_when_the_last_one_is_old(tmp_path: Path) -> None:
    now = 0.0
    network = make_network()
    optimizer = torch.optim.Adam(network.parameters())
    take_step(network, optimizer, 0)
    writer, silent = (
        CheckpointWriter(tmp_path / name, network, optimizer, 10.0, active=active, clock=lambda: now)
        for name, active in (("active", True), ("silent", False))
    )
    now = 10.5
    assert writer.due
    assert silent.due
    for checkpoint_writer in (writer, silent):
        checkpoint_writer.write(STATE, "best", "latest")
        assert not checkpoint_writer.due
    now = 20.4
    assert not writer.due
    assert not (tmp_path / "silent").exists()
    # Only the latest checkpoint can be resumed, so only it has the optimiser's moments.
    header = {name: _tensor_names(checkpoint_path(tmp_path / "active", name)) for name in ("best", "latest")}
    assert {name.split(".")[0] for name in header["best"]} == {"network"}
    assert {name.split(".")[0] for name in header["latest"]} == {"network", "optimizer"}


def _tensor_names(path: Path) -> list[str]:
    content = path.read_bytes()
    return [name for name in json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]) if name[0] != "_"]
