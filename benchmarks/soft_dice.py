"""Time and peak memory of soft Dice, forward and backward: ours against one-hot volumes and grid_sample.

    python benchmarks/soft_dice.py --labels 35 --shape 96 104 88

Each method runs in a process of its own; its memory is the peak of that process over what it held with its input.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
from torch import Tensor
from torch.nn import functional

from llmreg.similarity.soft_dice import soft_dice


def label_volume(shape: tuple[int, ...], labels: int, variant: int) -> Tensor:
    """Return smooth random anatomy, (1, z, y, x) uint8; variants share their anatomy and differ by a little noise."""
    coarse = [max(2, length // 12) for length in shape]
    scores = torch.randn(1, labels + 1, *coarse, generator=torch.Generator().manual_seed(0))
    scores = scores + 0.3 * torch.randn(scores.shape, generator=torch.Generator().manual_seed(variant))
    best = torch.full((1, *shape), -torch.inf)
    result = torch.zeros(1, *shape, dtype=torch.uint8)
    for label in range(labels + 1):  # one at a time, so that making the input does not set the peak
        score = functional.interpolate(scores[:, label, None], size=shape, mode="trilinear")[:, 0]
        result[score > best] = label
        best = torch.maximum(best, score)
    return result


def one_hot_dice(moving: Tensor, fixed: Tensor, flow: Tensor, labels: Tensor) -> Tensor:
    """Soft Dice loss as it is usually written: one channel per label, sampled by grid_sample."""
    shape = flow.shape[2:]
    axes = torch.meshgrid(*(torch.arange(length, dtype=flow.dtype) for length in shape), indexing="ij")
    position = torch.stack(axes[::-1], dim=-1) + flow.movedim(1, -1)
    grid = 2 * position / (torch.tensor(shape[::-1], dtype=flow.dtype) - 1) - 1
    moving_hot = (moving[:, None] == labels.view(-1, 1, 1, 1)).to(flow.dtype)
    fixed_hot = (fixed[:, None] == labels.view(-1, 1, 1, 1)).to(flow.dtype)
    warped = functional.grid_sample(moving_hot, grid, align_corners=True)
    overlap = (warped * fixed_hot).sum((2, 3, 4))
    return 1 - (2 * overlap / (warped.sum((2, 3, 4)) + fixed_hot.sum((2, 3, 4)) + 1e-6)).mean()


def measure(method: str, shape: tuple[int, ...], count: int, repeats: int) -> dict[str, float]:
    """Run one method and return its best time in seconds, its extra peak memory in MiB, its loss and gradient norm."""
    moving, fixed = label_volume(shape, count, 1), label_volume(shape, count, 2)
    coarse = torch.randn(1, 3, *(max(2, length // 12) for length in shape), generator=torch.Generator().manual_seed(3))
    flow = (2 * functional.interpolate(coarse, size=shape, mode="trilinear")).requires_grad_()
    labels = torch.arange(1, count + 1)
    small = slice(0, 8)
    run(method, moving[..., small], fixed[..., small], flow[..., small].detach().requires_grad_(), labels)  # code pages
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(repeats):
        flow.grad = None
        start = time.perf_counter()
        loss = run(method, moving, fixed, flow, labels)
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts in bytes, Linux in KiB
    assert flow.grad is not None
    return {
        "seconds": min(times),
        "mebibytes": (peak - before) * unit / 2**20,
        "loss": loss,
        "gradient": float(flow.grad.norm()),
    }


def run(method: str, moving: Tensor, fixed: Tensor, flow: Tensor, labels: Tensor) -> float:
    if method == "ours":
        loss, _ = soft_dice(moving, fixed, flow, labels)
    else:
        loss = one_hot_dice(moving, fixed, flow, labels)
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=[96, 104, 88], help="z y x")
    parser.add_argument("--labels", type=int, default=35)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=["ours", "one-hot"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.only:
        figures = measure(arguments.only, tuple(arguments.shape), arguments.labels, arguments.repeats)
        sys.stdout.write(json.dumps(figures))
        return
    results = {}
    for method in ("ours", "one-hot"):
        command = [sys.executable, __file__, *sys.argv[1:], "--only", method]
        results[method] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    lines = [f"{arguments.labels} labels on {'x'.join(map(str, arguments.shape))}, {arguments.threads} threads"]
    for method, figures in results.items():
        lines.append(
            f"{method:8} {figures['seconds']:8.4f} s {figures['mebibytes']:8.1f} MiB   "
            f"loss {figures['loss']:.6f}   gradient norm {figures['gradient']:.6e}"
        )
    ours, one_hot = results["ours"], results["one-hot"]
    lines.append(
        f"ours is {one_hot['seconds'] / ours['seconds']:.1f} times faster "
        f"in {ours['mebibytes'] / one_hot['mebibytes']:.2f} of the memory"
    )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
