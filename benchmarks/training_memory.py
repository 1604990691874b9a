"""Peak memory of a training step against the planner's estimate, each in a process of its own.

python benchmarks/training_memory.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import torch

from llmreg.devices import Machine, autocast, this_machine
from llmreg.machine import peak_memory_gb
from llmreg.networks.factory import build_network
from llmreg.networks.llm_morph.costs import BUILT_IN_SIZE, training_memory_gb
from llmreg.networks.resolution import predict_flow
from llmreg.plans.plans import Loss
from llmreg.preprocessing.planning import NETWORK
from llmreg.training.objective import Predicted, terms, total

# Size of the grid (x, y, z), downsampling, width, finest level twice, weight of the image term.
RUNS = [
    ((64, 64, 64), 1, 16, False, 0),
    ((64, 64, 64), 1, 16, True, 0),
    ((64, 64, 64), 1, 8, False, 0),
    ((96, 80, 96), 1, 16, False, 0),
    ((96, 80, 96), 1, 16, True, 0),
    ((96, 80, 96), 1, 16, False, 1),
    ((96, 80, 96), 1, 24, False, 0),
    ((192, 160, 192), 2, 16, False, 0),
    ((192, 160, 192), 2, 16, True, 0),
    ((96, 96, 96), 2, 16, False, 0),
    ((112, 112, 128), 1, 16, True, 0),
    ((112, 112, 128), 1, 8, True, 0),
    ((128, 160, 160), 1, 16, True, 0),
    ((128, 160, 160), 1, 16, True, 1),
]
QUICK = 5
LABELS = 29


def step(size: tuple[int, ...], downsampling: int, width: int, recompute: bool, similarity: float) -> float:
    """Two training steps on made-up images and label maps; the process's peak resident memory in GiB."""
    device, shape = torch.device("cpu"), size[::-1]
    settings = NETWORK.model_copy(update={"width": width})
    network = build_network(settings, [n // downsampling for n in shape], device, recompute).train()
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
    weights = Loss(similarity=similarity)
    for _ in range(2):
        with autocast(device, "bfloat16"):
            flow, full = predict_flow(network, batch["moving"], batch["fixed"], downsampling)
        loss = total(terms(Predicted(batch, flow, full, downsampling), weights), weights)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return peak_memory_gb()


def estimate(
    machine: Machine, size: tuple[int, ...], downsampling: int, width: int, recompute: bool, similarity: float
) -> float:
    grid = size[0] * size[1] * size[2]
    network, loss = NETWORK.model_copy(update={"width": width}), Loss(similarity=similarity)
    return training_memory_gb(network, BUILT_IN_SIZE, grid // downsampling**3, grid, recompute, machine, loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"only the first {QUICK} rows")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        sys.stdout.write(f"{step(*json.loads(options.step))}\n")
        return
    machine = this_machine()
    sys.stdout.write("grid         resolution  width  twice  image term  measured (GB)  estimated (GB)  ratio\n")
    ratios = []
    for run in RUNS[:QUICK] if options.quick else RUNS:
        command = [sys.executable, __file__, "--step", json.dumps(run)]
        measured = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        estimated = estimate(machine, *run)
        ratios.append(estimated / measured)
        size, downsampling, width, twice, similarity = run
        sys.stdout.write(
            f"{'x'.join(map(str, size)):<13}{'half' if downsampling == 2 else 'full':<12}{width:<7}{twice!s:<7}"
            f"{similarity:<12}{measured:>13.2f}{estimated:>16.2f}{ratios[-1]:>7.2f}\n"
        )
    sys.stdout.write(f"The estimate is off by at most {100 * max(abs(ratio - 1) for ratio in ratios):.0f} %.\n")


if __name__ == "__main__":
    main()
