"""llmreg_predict beside classical registration on the same pairs: seconds a pair, peak memory and Dice.

    python benchmarks/predict.py -d 2 -m results/Dataset002_BrainMRCT/llm_morph__default__half
    python benchmarks/predict.py -d 2 -m MODEL --methods ants convexadam --llmreg "" "--refine 50"

The start of each program is included: ``llmreg_predict`` is one command over all pairs, as users type it, and its time
is shared out among them; the other programs start for each pair (see llmreg/comparison/classical_methods.py for how
they are called). The pairs are validation pairs of the model's fold, which it was not trained on. Peers need
``pip install llmreg[peers]``; those that are not installed are left out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from llmreg.comparison.benchmark_settings import BenchmarkSettings
from llmreg.comparison.classical_methods import CLASSICAL, is_installed
from llmreg.comparison.classical_runs import register_pairs
from llmreg.comparison.judged_pairs import judged_pairs
from llmreg.comparison.pair_tables import classical_pairs, write_pairs
from llmreg.data.dataset import Pair
from llmreg.evaluation.evaluate import evaluate_folder
from llmreg.predictions import read_predictions
from llmreg.preprocessing.preparation import load_raw_dataset

Row = tuple[str, float, float, float]


def rows(options: argparse.Namespace, work: Path) -> Iterator[Row]:
    """Name, seconds a pair, peak memory (GB) and mean Dice (%) of each method, as they come."""
    settings = BenchmarkSettings(options.dataset, (options.fold,))
    dataset = load_raw_dataset(settings.dataset)
    judged = classical_pairs(settings, judged_pairs(settings, options.fold, dataset), dataset)
    pairs = [pair for pair in judged if pair.fixed.label is not None and pair.moving.label is not None][: options.pairs]
    table = work / "pairs.csv"
    write_pairs(table, [Pair(pair.fixed.name, pair.moving.name) for pair in pairs], dataset)
    for number, flags in enumerate(options.llmreg):
        folder = work / f"llmreg_{number}"
        command = ["-i", str(table), "-o", str(folder), "-m", str(options.model), "-f", options.fold]
        command += ["--save", "field", "warped", "prealignment", *flags.split()]
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "llmreg.commands", "predict", *command], check=True, stderr=subprocess.DEVNULL
        )
        seconds = (time.perf_counter() - start) / len(pairs)
        metrics = evaluate_folder(folder)["metrics"]
        if not number:
            yield "as they lie", float("nan"), float("nan"), 100 * metrics["initial_dice"]["mean"]
        memory = read_predictions(folder).peak_memory_gb or float("nan")
        yield f"llmreg {flags}".strip(), seconds, memory, 100 * metrics["dice"]["mean"]
    for method in options.methods:
        if not is_installed(method):
            sys.stdout.write(f"{method:<40}  is not installed\n")
            continue
        register_pairs(method, pairs, work / method, 1800)
        predictions = pd.DataFrame(pair.to_json() for pair in read_predictions(work / method).pairs)
        dice = 100 * evaluate_folder(work / method)["metrics"]["dice"]["mean"]
        yield method, predictions["seconds"].mean(), predictions["peak_memory_gb"].max(), dice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", "--dataset", default="2")
    parser.add_argument("-m", "--model", type=Path, required=True, help="a trained model folder")
    parser.add_argument("-f", "--fold", default="0")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--methods", nargs="*", choices=CLASSICAL, default=list(CLASSICAL))
    parser.add_argument(
        "--llmreg", nargs="+", default=[""], help="flags of llmreg_predict, a row for each text (default: none)"
    )
    options = parser.parse_args()
    sys.stdout.write(f"{options.pairs} validation pairs, {os.cpu_count()} cores\n")
    sys.stdout.write(f"{'':<40}{'s a pair':>10}{'ratio':>8}{'peak GB':>10}{'Dice %':>9}\n")
    first: float | None = None
    with tempfile.TemporaryDirectory() as work:
        for name, seconds, memory, dice in rows(options, Path(work)):
            first = first or (seconds if seconds == seconds else None)
            ratio = seconds / first if first else float("nan")
            sys.stdout.write(f"{name:<40}{seconds:>10.1f}{ratio:>8.2f}{memory:>10.2f}{dice:>9.1f}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
