"""Peak memory of a training step against the plans' estimate, each size in a process of its own.

python benchmarks/training_memory.py
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys


def step(shape: tuple[int, int, int], downsampling: int) -> None:
    """Two training steps; print the peak resident memory in GB."""
    import torch

    from llmreg.devices import autocast
    from llmreg.network.config import NetworkSettings
    from llmreg.network.factory import build_network
    from llmreg.preprocessing.planning import plan_configuration
    from llmreg.training.losses import gradient_l2, soft_dice
    from llmreg.training.trainer import predict_flow

    device = torch.device("cpu")
    planned = plan_configuration(shape[::-1], downsampling)
    network = build_network(NetworkSettings(), planned.network_shape[::-1], device, planned.recompute).train()
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], fused=True)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 30, (1, *shape), generator=generator, dtype=torch.uint8)
    image = torch.rand((1, 1, *shape), generator=generator)
    for _ in range(2):
        with autocast(device, "bfloat16"):
            flow, full = predict_flow(network, image, image.flip(-1), downsampling)
        loss = soft_dice(labels, labels.flip(-1), full, torch.arange(1, 30))[0] + 0.1 * gradient_l2(flow)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", nargs=4, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        z, y, x, downsampling = options.step
        step((z, y, x), downsampling)
        return
    from llmreg.preprocessing.planning import plan_configuration

    print("size            resolution  measured (GB)  estimated (GB)  ratio")
    for size in ((96, 96, 96), (192, 128, 128), (256, 192, 128)):
        for downsampling in (2, 1):
            if size == (256, 192, 128) and downsampling == 1:
                continue
            command = [sys.executable, __file__, "--step", *map(str, size[::-1]), str(downsampling)]
            measured = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            estimated = plan_configuration(size, downsampling).memory_gb
            print(
                f"{'x'.join(map(str, size)):<16}{'half' if downsampling == 2 else 'full':<12}{measured:>13.2f}"
                f"{estimated:>16.2f}{estimated / measured:>7.2f}"
            )


if __name__ == "__main__":
    main()
