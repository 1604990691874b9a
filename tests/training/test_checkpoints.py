from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from llmreg.training import checkpoints as checkpoint


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(2, 4, 3), nn.Conv3d(4, 3, 3)).to(memory_format=torch.channels_last_3d)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    image = torch.rand(1, 2, 7, 8, 9, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(image).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("fused", [True, False])
def test_a_network_goes_on_bit_by_bit_however_its_weights_lie_in_memory(tmp_path: Path, fused: bool) -> None:
    whole, part, rest = network(), network(), network()
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.01, fused=fused) for model in (whole, part, rest)]
    for seed in range(3):
        step(whole, optimizers[0], seed)
    step(part, optimizers[1], 0)
    state = checkpoint.State(plans_digest="", llm_sha256="", configuration="half", fold="0", epochs=1, step=1)
    checkpoint.save(tmp_path, "latest", state, part, optimizers[1])
    assert checkpoint.load(checkpoint.path_of(tmp_path, "latest"), rest, optimizers[2]) == state
    for seed in (1, 2):
        step(rest, optimizers[2], seed)
    for one, other in zip(whole.parameters(), rest.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()


def test_debris_of_a_write_that_was_cut_off_is_removed(tmp_path: Path) -> None:
    for name in (".partial-1-checkpoint_latest.safetensors", ".tmpAbc", "checkpoint_best.safetensors"):
        (tmp_path / name).write_text("")
    checkpoint.remove_debris(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_best.safetensors"]
