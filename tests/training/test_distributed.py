from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from llmreg.training.distributed import DistributedContext, join_processes, main_process_first

PROGRAM = """
    import sys
    from pathlib import Path

    import torch
    from torch import nn

    from llmreg.training.distributed import join_processes, main_process_first

    folder = Path(sys.argv[1])
    with join_processes("cpu") as context:
        rank = context.rank
        assert context.world == 2
        assert context.gather({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
        assert context.reduce_max(rank, 5 - rank, 7) == [1, 5, 7]
        with main_process_first(context):
            if rank:
                assert (folder / "written").read_text() == "by 0"
            else:
                (folder / "written").write_text("by 0")
        try:
            with main_process_first(context):
                raise ValueError(rank)
        except ValueError:
            pass
        layer = nn.Linear(1, 1, bias=False)
        nn.init.ones_(layer.weight)
        wrapped = context.wrap(layer)
        wrapped(torch.tensor([[float(3 + 2 * rank)]])).backward()
        assert layer.weight.grad.item() == 4.0
        context.wait()
        (folder / f"done_{rank}").touch()
"""


def test_two_processes_work_together(tmp_path: Path) -> None:
    """Gathered items are in the order of ranks, rank 0 goes first, an error lets nobody wait, gradients are means."""
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(PROGRAM))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run(
        [sys.executable, *launcher, str(script), str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert all((tmp_path / f"done_{rank}").exists() for rank in range(2))


def test_a_process_that_is_alone_does_everything_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    network = nn.Linear(1, 1)
    with join_processes("cpu") as context:
        assert context == DistributedContext(0, 1, torch.device("cpu"))
        assert context.first
        assert context.gather("mine") == ["mine"]
        assert context.reduce_max(3, 1) == [3, 1]
        assert context.wrap(network) is network
        context.wait()
        with main_process_first(context):
            pass


def test_only_rank_0_is_first() -> None:
    assert [DistributedContext(rank, 3, torch.device("cpu")).first for rank in range(3)] == [True, False, False]
