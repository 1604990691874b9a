"""What folders of scored predictions say, and where a comparison keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from llmreg.files import read_json
from llmreg.inference.predict import PREDICT_FILE

# In a dataset's folder of results, and in it what was compared.
BENCHMARK_FOLDER = "benchmark"
BENCHMARK_FILE = "benchmark.json"
METRICS_FILE = "metrics.csv"


def per_pair(folder: Path) -> pd.DataFrame:
    """Means over labels by pair, with the seconds and the memory it took where ``predict.json`` says so."""
    table = pd.read_csv(folder / METRICS_FILE, dtype={"pair_id": str})
    means = table.groupby("pair_id").mean(numeric_only=True).drop(columns="label")
    if not (folder / PREDICT_FILE).exists():
        return means
    predicted = read_json(folder / PREDICT_FILE)
    known = pd.DataFrame(predicted["pairs"]).set_index("pair_id")
    means["seconds"] = known.get("seconds")
    done = folder / BENCHMARK_FILE
    if done.exists():
        # With the start of the program shared out among the pairs, as other programs start for each.
        means["seconds"] = read_json(done)["seconds"]
    means["peak_memory_gb"] = known.get("peak_memory_gb", predicted.get("peak_memory_gb"))
    return means


def initial(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The same figures before registration, from the columns of any method's pairs."""
    known = pd.concat(tables)
    return before(known[~known.index.duplicated()], "initial_")


def before(pairs: pd.DataFrame, stage: str) -> pd.DataFrame:
    """The figures of an earlier stage, whose columns begin with its name: ``initial_`` or ``prealigned_``."""
    return pd.DataFrame({name.removeprefix(stage): pairs[name] for name in pairs if str(name).startswith(stage)})
