"""One training step: llmreg's settings beside a plain float32 build of the same network.

LLaMA-3-8B's width (4096, random weights) on three sizes:

* abdomen: the paper's, 96 x 80 x 96 voxels, 180 tokens, loss at 192 x 160 x 192 with 4 labels;
* brain: 80 x 96 x 80 voxels, 150 tokens, 32 labels;
* paper-brain: the paper's, 176 x 208 x 192 voxels, 1716 tokens, 35 labels; of llmreg alone.

Plain: all in float32, PyTorch's own convolution and instance normalisation, all activations kept, one-hot label
volumes. llmreg: frozen layers in bfloat16 and autocast where the hardware computes in it, the finest level computed
twice, soft Dice without one-hot volumes. Each runs in a process of its own.

    python benchmarks/training_step.py [--cases abdomen brain] [--steps 3] [--width 4096]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig

from llmreg.devices import autocast, has_bfloat16
from llmreg.networks.fast_layers import Conv3d, InstanceNorm3d
from llmreg.networks.language_models.llm_settings import LLMSettings
from llmreg.networks.language_models.loading import LoadedLayers, build_layers, random_layers
from llmreg.networks.llm_morph.network import LLMMorph
from llmreg.networks.llm_morph.plugin import LLMMorphSettings
from llmreg.networks.registration_network import GridNetwork
from llmreg.similarity.soft_dice import soft_dice
from llmreg.similarity.terms import gradient_l2


@dataclass(frozen=True)
class Case:
    """What is registered: the network's shape (z, y, x), how much finer the images' grid is, and the labels."""

    shape: tuple[int, int, int]
    downsampling: int
    labels: int
    plain: bool = True


CASES = {
    "abdomen": Case((96, 80, 96), 2, 4),
    "brain": Case((80, 96, 80), 1, 32),
    "paper-brain": Case((176, 208, 192), 1, 35, plain=False),
}


def layers_of(width: int, dtype: torch.dtype) -> LoadedLayers:
    """Two layers of LLaMA-3-8B's shape with random weights, the same numbers in every type."""
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 7 // 2,
        num_attention_heads=width // 128,
        num_key_value_heads=max(1, width // 512),
        num_hidden_layers=32,
        vocab_size=128,
    ).to_dict()
    return build_layers(random_layers("random", config, (15, 16)), dtype)


def one_hot_dice(moving: Tensor, fixed: Tensor, flow: Tensor, count: int) -> Tensor:
    """Soft Dice as it is usually written: one channel a label, warped by grid_sample."""
    axes = torch.meshgrid(*(torch.arange(length, dtype=flow.dtype) for length in flow.shape[2:]), indexing="ij")
    grid = torch.stack(axes[::-1], dim=-1) + flow.movedim(1, -1)
    grid = 2 * grid / (torch.tensor(flow.shape[:1:-1], dtype=flow.dtype) - 1) - 1
    labels = torch.arange(1, count + 1).view(-1, 1, 1, 1)
    moving_hot, fixed_hot = ((volume[:, None] == labels).to(flow.dtype) for volume in (moving, fixed))
    warped = functional.grid_sample(moving_hot, grid, align_corners=True)
    overlap = (warped * fixed_hot).sum((2, 3, 4))
    return 1 - (2 * overlap / (warped.sum((2, 3, 4)) + fixed_hot.sum((2, 3, 4)) + 1e-6)).mean()


def make_plain() -> None:
    """Use PyTorch's own layers where the network has faster ways to compute the same."""
    Conv3d.forward = nn.Conv3d.forward  # type: ignore[method-assign]
    InstanceNorm3d.forward = nn.InstanceNorm3d.forward  # type: ignore[method-assign]


def measure(build: str, case: Case, width: int, steps: int) -> None:
    """Train some steps in this process; print the best time, the peak memory above the imports, and the losses."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plain = build == "plain float32"
    in_bfloat16 = not plain and has_bfloat16(torch.device("cpu"))
    torch.manual_seed(0)
    settings = LLMMorphSettings(llm=LLMSettings(dtype="bfloat16" if in_bfloat16 else "float32"))
    network = LLMMorph(settings, case.shape, layers_of(width, getattr(torch, settings.llm.dtype)))
    network.recompute = not plain
    if plain:
        make_plain()
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-4) if plain else torch.optim.Adam(parameters, lr=1e-4, fused=True)
    full = tuple(case.downsampling * length for length in case.shape)
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(2, 1, *(length // 16 for length in full), generator=generator)
    moving, fixed = functional.interpolate(coarse, size=full, mode="trilinear").split(1)
    moving_labels, fixed_labels = (
        ((image[:, 0] - image.min()) / (image.max() - image.min()) * case.labels).round().to(torch.uint8)
        for image in (moving, fixed)
    )
    times, losses = [], []
    for _ in range(steps):
        start = time.perf_counter()
        with autocast(torch.device("cpu"), "none" if plain else "bfloat16"):
            flow, finer = GridNetwork(network, case.downsampling)(moving, fixed)
        if plain:
            dice = one_hot_dice(moving_labels, fixed_labels, finer, case.labels)
        else:
            dice, _ = soft_dice(moving_labels, fixed_labels, finer, torch.arange(1, case.labels + 1))
        loss = dice + 0.1 * gradient_l2(flow)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
        losses.append(loss.item())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    json.dump({"seconds": min(times), "memory_gb": memory / 2**20, "losses": losses}, sys.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--width", type=int, default=4096, help="a multiple of 512")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["abdomen", "brain"])
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        build, name = options.measure
        return measure(build, CASES[name], options.width, options.steps)
    kind = "bfloat16" if has_bfloat16(torch.device("cpu")) else "float32 (this processor does not compute in bfloat16)"
    sys.stdout.write(f"llmreg computes in {kind}\n")
    sys.stdout.write(f"{'':<28}{'step (s)':>10}{'peak memory (GB)':>18}   losses\n")
    for name in options.cases:
        results = {}
        for build in ("plain float32", "llmreg") if CASES[name].plain else ("llmreg",):
            words = ["--measure", build, name, "--width", str(options.width), "--steps", str(options.steps)]
            process = subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE)
            run = results[build] = json.loads(process.stdout)
            losses = " ".join(f"{loss:.4f}" for loss in run["losses"])
            row = f"{name + ', ' + build:<28}{run['seconds']:>10.2f}{run['memory_gb']:>18.2f}   {losses}\n"
            sys.stdout.write(row)
        if len(results) == 2:
            time_share, memory_share = (
                results["llmreg"][k] / results["plain float32"][k] for k in ("seconds", "memory_gb")
            )
            sys.stdout.write(f"{name}: {time_share:.2f} of the time, {memory_share:.2f} of the memory\n")


if __name__ == "__main__":
    main()
