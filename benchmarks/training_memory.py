"""Peak memory and time of a training step against the estimates of each network, each in a process of its own.

python benchmarks/training_memory.py [--quick] [--network NAME]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from llmreg.devices import Machine, autocast, detect_machine
from llmreg.machine import peak_memory_gb
from llmreg.networks.factory import build_network
from llmreg.networks.network_registry import (
    NetworkSettings,
    StepSize,
    default_settings,
    step_seconds,
    training_memory_gb,
)
from llmreg.networks.registration_network import GridNetwork
from llmreg.similarity.loss_settings import LossSettings, compute_terms, sum_terms
from llmreg.similarity.term_registry import LossInputs

LABELS = 29


@dataclass(frozen=True)
class Run:
    """A training step.

    Attributes:
        size: of the grid (x, y, z).
        downsampling: from the grid to the network.
        network: its name.
        changes: of the network's settings.
        recompute: whether the finest level is recomputed.
        similarity: weight of the image term.
    """

    size: tuple[int, int, int]
    downsampling: int = 1
    network: str = "llm_morph"
    changes: dict[str, Any] = field(default_factory=dict)
    recompute: bool = False
    similarity: float = 0.0

    @property
    def settings(self) -> NetworkSettings:
        """The network's settings."""
        return default_settings(self.network).model_copy(update=self.changes)


NARROW, WIDE = {"width": 8}, {"width": 24}
QUICK = [
    Run((64, 64, 64)),
    Run((64, 64, 64), recompute=True),
    Run((64, 64, 64), changes=NARROW),
    Run((64, 64, 64), changes={"blocks": "vit"}),
    Run((64, 64, 64), network="voxelmorph"),
]
RUNS = [
    *QUICK,
    Run((96, 80, 96)),
    Run((96, 80, 96), recompute=True),
    Run((96, 80, 96), similarity=1.0),
    Run((96, 80, 96), changes=WIDE),
    Run((96, 80, 96), changes={"blocks": "vit", "token_width": 4096}),
    Run((192, 160, 192), 2),
    Run((192, 160, 192), 2, recompute=True),
    Run((96, 96, 96), 2),
    Run((112, 112, 128), recompute=True),
    Run((112, 112, 128), changes=NARROW, recompute=True),
    Run((128, 160, 160), recompute=True),
    Run((128, 160, 160), recompute=True, similarity=1.0),
    *(
        Run(size, 1, network, changes, recompute)
        for network, changes, recompute in (
            ("voxelmorph", {}, False),
            ("voxelmorph", {"size": "small"}, False),
            ("transmorph", {}, False),
            ("transmorph", {"stages": 3}, False),
            ("mambamorph", {}, False),
            ("mambamorph", {}, True),
            ("mambamorph", {"features": False}, False),
            ("dual_pyramid", {}, False),
            ("dual_pyramid", {"width": 16}, False),
        )
        for size in ((64, 64, 64), (96, 96, 96))
    ),
]


def step(run: Run) -> tuple[float, float]:
    """Two training steps on made-up images and label maps.

    Returns:
        The process's peak resident memory in GiB, and the seconds of the second step.
    """
    device, shape = torch.device("cpu"), run.size[::-1]
    network = build_network(run.settings, [n // run.downsampling for n in shape], device, recompute=run.recompute)
    model = GridNetwork(network, run.downsampling).train()
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], fused=True)
    generator = torch.Generator().manual_seed(0)
    # Labels in blocks: borders of structures take memory, and noise has nothing else.
    blocks = torch.randint(0, LABELS + 1, (1, 1, 8, 8, 8), generator=generator).float()
    labels = torch.nn.functional.interpolate(blocks, size=shape)[:, 0].to(torch.uint8)
    image = torch.rand((1, 1, *shape), generator=generator)
    batch = {
        "fixed": image.flip(-1),
        "moving": image,
        "fixed_labels": labels.flip(-1),
        "moving_labels": labels,
        "fixed_seen": torch.ones_like(labels),
        "moving_seen": torch.ones_like(labels),
        "labels": torch.arange(1, LABELS + 1),
    }
    weights = LossSettings(similarity=run.similarity)
    for _ in range(2):
        start = time.process_time()
        with autocast(device, "bfloat16"):
            flow, full = model(batch["moving"], batch["fixed"])
        loss = sum_terms(compute_terms(LossInputs(batch, flow, full), weights), weights)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return peak_memory_gb(), time.process_time() - start


def estimate(machine: Machine, run: Run) -> tuple[float, float]:
    """The estimated memory in GiB and seconds of a step."""
    x, y, z = (size // run.downsampling for size in run.size)
    grid = run.size[0] * run.size[1] * run.size[2]
    size = StepSize((z, y, x), grid, machine, run.recompute, loss_gb=LossSettings(similarity=run.similarity).memory_gb)
    return training_memory_gb(run.settings, size), step_seconds(run.settings, size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"only the first {len(QUICK)} rows")
    parser.add_argument("--network", help="only the rows of this network")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        run = Run(**json.loads(options.step))
        sys.stdout.write(json.dumps(step(run)))
        return
    machine = detect_machine()
    sys.stdout.write("measured and estimated GB, ratio; measured and estimated seconds, ratio; step\n")
    ratios = []
    for run in QUICK if options.quick else RUNS:
        if options.network not in (None, run.network):
            continue
        command = [sys.executable, __file__, "--step", json.dumps(asdict(run))]
        measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        estimated = estimate(machine, run)
        memory, seconds = (guess / truth for guess, truth in zip(estimated, measured, strict=True))
        ratios.append(memory)
        figures = (measured[0], estimated[0], memory, measured[1], estimated[1], seconds)
        sys.stdout.write("".join(f"{figure:8.2f}" for figure in figures) + f"  {run}\n")
        sys.stdout.flush()
    sys.stdout.write(
        f"The estimate of memory is off by at most {100 * max(abs(ratio - 1) for ratio in ratios):.0f} %.\n"
    )


if __name__ == "__main__":
    main()
