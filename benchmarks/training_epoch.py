"""Where the time of a training step goes, without and with processes that load ahead.

On synthetic bodies with the default network, or on a dataset that is planned and preprocessed.
Each row runs in a process of its own; ``load`` is the time that the step waits for its pair.

    python benchmarks/training_epoch.py [--steps 20] [--workers 0 1] [--device cpu]
    llmreg_home=... python benchmarks/training_epoch.py --dataset 2 --configuration full
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from llmreg import paths
from llmreg.commands import plan_and_preprocess
from llmreg.data import splits
from llmreg.data.dataset import load_dataset, pairs_among
from llmreg.data.splits import SPLITS_FILE
from llmreg.data.synthetic import write_demo_dataset
from llmreg.devices import choose_device, has_bfloat16
from llmreg.networks.factory import build_network
from llmreg.networks.registration_network import GridNetwork
from llmreg.paths import preprocessed_dataset
from llmreg.plans.plans import find_plans
from llmreg.preprocessing.preprocessed_volumes import volumes_folder
from llmreg.training.distributed import DistributedContext
from llmreg.training.experiment import fetch_weights
from llmreg.training.options import FoldData
from llmreg.training.samples import TrainingPairs, load_batches, number_samples
from llmreg.training.step import Learner

PARTS = ("load", "forward", "loss", "backward", "update")
WARM_UP = 3


def measure(options: argparse.Namespace) -> None:
    """Train some steps in this process; print the seconds of each part of a step as JSON."""
    folder = preprocessed_dataset(options.dataset)
    dataset = load_dataset(paths.find_dataset_folder(options.dataset, paths.raw_folder()))
    plans = fetch_weights(find_plans(folder, "default"))
    configuration = plans.configuration(options.configuration or plans.default_configuration)
    device = choose_device(options.device)
    network = build_network(plans.network, configuration.network_shape[::-1], device, recompute=configuration.recompute)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-5, fused=True)
    cases = splits.read_splits(folder / SPLITS_FILE)[0].training_cases
    fold = FoldData("0", pairs_among(dataset, cases), (), volumes_folder(folder, plans), folder)
    pairs = TrainingPairs(
        fold, configuration, plans.training, plans.augmentation, use_unlabelled=plans.loss.uses_unlabelled_pairs
    )
    steps = range(WARM_UP + options.steps)
    workers = int(options.measure)
    loading = load_batches(
        pairs,
        number_samples(steps, plans.training, DistributedContext(0, 1, device)),
        workers,
        pin_memory=device.type == "cuda",
    )
    learner = Learner(GridNetwork(network, configuration.downsampling), optimizer, device, plans.loss, plans.training)
    for _ in range(WARM_UP):
        learner.step(loading, 1e-5)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as profiler:
        start = time.perf_counter()
        for _ in range(options.steps):
            learner.step(loading, 1e-5)
        seconds = (time.perf_counter() - start) / options.steps
    loading.close()
    events = {event.key: event for event in profiler.key_averages()}
    parts = {part: events[part].cpu_time_total / 1e6 / options.steps for part in PARTS}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    json.dump({"shape": configuration.network_shape, "step": seconds, "memory_gb": memory} | parts, sys.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--device")
    parser.add_argument("--dataset", help="id of a dataset that is preprocessed (default: synthetic bodies)")
    parser.add_argument("--configuration")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return measure(options)
    with tempfile.TemporaryDirectory() as home:
        arguments = sys.argv[1:]
        if options.dataset is None:
            os.environ["llmreg_home"] = home  # noqa: SIM112
            write_demo_dataset(Path(home, "raw"), subjects=4, seed=1)
            if plan_and_preprocess.main(["-d", "999"]):
                raise SystemExit("the synthetic dataset could not be prepared")
            arguments += ["--dataset", "999"]
        results = {}
        for workers in options.workers:
            process = subprocess.run(
                [sys.executable, __file__, *arguments, "--measure", str(workers)], check=True, stdout=subprocess.PIPE
            )
            results[workers] = json.loads(process.stdout)
    kind = "bfloat16" if has_bfloat16(choose_device(options.device)) else "float32"
    shape = " x ".join(map(str, results[options.workers[0]]["shape"]))
    sys.stdout.write(f"{options.steps} steps at {shape} network voxels in {kind}, seconds a step\n")
    sys.stdout.write(f"{'workers':<9}" + "".join(f"{name:>10}" for name in ("step", *PARTS)) + f"{'peak GB':>10}\n")
    for workers, row in results.items():
        cells = "".join(f"{row[name]:>10.3f}" for name in ("step", *PARTS))
        sys.stdout.write(f"{workers:<9}{cells}{row['memory_gb']:>10.2f}\n")
    first, last = options.workers[0], options.workers[-1]
    ratio = results[last]["step"] / results[first]["step"]
    sys.stdout.write(f"{last} worker(s): {ratio:.2f} of the time with {first}\n")


if __name__ == "__main__":
    main()
