"""Loading and augmenting pairs: the rate and the memory of all processes, with few and with many workers.

200 pairs of synthetic volumes of 96 x 96 x 96 voxels with 8 structures, three times each; memory is that of this
process and its children together (PSS, so that what they share counts once), after each round.

    python benchmarks/loading.py [--workers 1 8] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import blosc2
import numpy as np

from llmreg.data.dataset import Pair
from llmreg.devices import Machine
from llmreg.networks.llm_morph.plugin import LLMMorphSettings
from llmreg.plans.plan_settings import AugmentationSettings, Training
from llmreg.plans.plans import Plans
from llmreg.preprocessing.planning.sizes import Budget, plan_configuration
from llmreg.similarity.loss_settings import LossSettings
from llmreg.training.options import FoldData
from llmreg.training.samples import TrainingPairs, load_batches

SHAPE, CASES, PAIRS = (96, 96, 96), 20, 200


def write_volumes(folder: Path) -> list[Pair]:
    """Cases in the layout of preprocessing, and pairs of them."""
    rng = np.random.default_rng(0)
    for number in range(CASES):
        blocks = rng.integers(0, 9, [n // 16 for n in SHAPE])
        labels = np.kron(blocks, np.ones((16, 16, 16))).astype(np.uint8)
        image = (labels / 9 + 0.05 * rng.random(SHAPE)).astype(np.float32)
        for name, values in (("", image), ("_seg", labels), ("_seen", np.ones(SHAPE, np.uint8))):
            blosc2.asarray(values, urlpath=str(folder / f"{number}{name}.b2nd"), mode="w")
        (folder / f"{number}.json").write_text(json.dumps({"annotated_labels": list(range(1, 9))}))
    all_pairs = [Pair(str(a), str(b)) for a in range(CASES) for b in range(CASES) if a != b]
    return all_pairs[:PAIRS]


def memory_gb() -> float:
    """The memory of this process and its children."""
    processes = ["self", *(str(child.pid) for child in multiprocessing.active_children())]
    total = 0
    for process in processes:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    configuration = plan_configuration(SHAPE, 1, LLMMorphSettings(), Budget(Machine("cpu", 16, 2, False)))
    plans = Plans.model_construct(augmentation=AugmentationSettings(), loss=LossSettings(), training=Training())
    rates = {}
    with tempfile.TemporaryDirectory() as folder:
        fold = FoldData("0", write_volumes(Path(folder)), (), Path(folder), Path(folder))
        pairs = TrainingPairs(
            fold, configuration, plans.training, plans.augmentation, use_unlabelled=plans.loss.uses_unlabelled_pairs
        )
        for workers in options.workers:
            loading = load_batches(pairs, [[number] for number in range(options.rounds * PAIRS)], workers)
            next(loading)
            start, memory = time.perf_counter(), []
            for number in range(1, options.rounds * PAIRS):
                next(loading)
                # While the processes are there: the last batch ends them.
                if number % PAIRS == PAIRS - 10:
                    memory.append(memory_gb())
            rates[workers] = (options.rounds * PAIRS - 1) / (time.perf_counter() - start)
            loading.close()
            leftover_processes = multiprocessing.active_children()
            rounds = ", ".join(f"{gb:.2f}" for gb in memory)
            growth = 100 * (memory[-1] / memory[0] - 1)
            sys.stdout.write(
                f"{workers} worker(s): {rates[workers]:.1f} pairs a second; {rounds} GB after each round "
                f"({growth:+.1f} %); {len(leftover_processes)} processes left over\n"
            )
    first, last = options.workers[0], options.workers[-1]
    sys.stdout.write(f"{last} worker(s): {rates[last] / rates[first]:.2f} times the rate of {first}\n")


if __name__ == "__main__":
    main()
