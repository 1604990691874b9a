"""What folders of scored predictions say, and where a comparison keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from llmreg.comparison.tables import INITIAL_TITLE, PREALIGNED_TITLE
from llmreg.evaluation.summary import METRICS_FILE, lost
from llmreg.files import read_json
from llmreg.inference.pair_inputs import PREDICT_FILE

# In a dataset's folder of results, and in it what was compared.
BENCHMARK_FOLDER = "benchmark"
BENCHMARK_FILE = "benchmark.json"


def per_pair(folder: Path) -> pd.DataFrame:
    """Means over labels by pair, and how many of them were lost: outside the image, or vanished in warping.

    With the seconds and the memory it took, where ``predict.json`` says so. A comparison's are by the clock, the start
    of the program shared out among the pairs, as other programs start for each.
    """
    table = pd.read_csv(folder / METRICS_FILE, dtype={"pair_id": str})
    pairs = table.groupby("pair_id")
    means = pairs.mean(numeric_only=True).drop(columns="label")
    for stage in ("initial_", "prealigned_", ""):
        if f"{stage}dice" in table:
            means[f"{stage}lost"] = lost(table, stage).groupby(table["pair_id"]).sum()
    if not (folder / PREDICT_FILE).exists():
        return means
    predicted = read_json(folder / PREDICT_FILE)
    known = pd.DataFrame(predicted["pairs"]).set_index("pair_id")
    means["seconds"] = known.get("seconds")
    record = folder / BENCHMARK_FILE
    if record.exists():
        means["seconds"] = read_json(record).get("spent", float("nan")) / len(known)
    for column in ("peak_memory_gb", "peak_gpu_memory_gb"):
        means[column] = known.get(column, predicted.get(column))
    return means


def failures(folder: Path) -> list[dict[str, Any]] | None:
    """The pairs that could not be registered, as ``predict.json`` lists them; None without predictions."""
    file = folder / PREDICT_FILE
    return list(read_json(file).get("failed", [])) if file.exists() else None


def earlier(tables: Sequence[pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The same figures before registration, as "Initial" and, where that is something else, "Pre-aligned".

    From the columns of any method's pairs.
    """
    known = pd.concat(tables)
    known = known[~known.index.duplicated()]
    stages = {INITIAL_TITLE: before(known, "initial_")}
    if is_prealigned(known):
        stages[PREALIGNED_TITLE] = before(known, "prealigned_")
    return stages


def is_prealigned(scores: pd.DataFrame, metrics: Sequence[str] = ("dice", "tre_mm")) -> bool:
    """Whether figures after pre-alignment are known, and it changed any of these."""
    known = [metric for metric in metrics if f"prealigned_{metric}" in scores]
    return any(not scores[f"prealigned_{metric}"].equals(scores[f"initial_{metric}"]) for metric in known)


def before(pairs: pd.DataFrame, stage: str) -> pd.DataFrame:
    """The figures of an earlier stage, whose columns begin with its name: ``initial_`` or ``prealigned_``."""
    return pd.DataFrame({name.removeprefix(stage): pairs[name] for name in pairs if str(name).startswith(stage)})
