"""Scores by pair, read from folders of scored predictions, before and after registration."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from llmreg.comparison.benchmark_record import PredictionRun
from llmreg.comparison.tables import INITIAL_TITLE, PREALIGNED_TITLE
from llmreg.evaluation.summary import METRICS_FILE, is_lost
from llmreg.predictions import PREDICT_FILE, read_predictions


def read_pair_scores(folder: Path) -> pd.DataFrame:
    """Mean over labels of each score by pair, and how many labels were lost: outside the image, or gone in warping.

    The columns ``seconds``, ``peak_memory_gb`` and ``peak_gpu_memory_gb`` say what a pair took, where ``predict.json``
    tells it. In a comparison, seconds are those of the whole program divided by the number of pairs, because classical
    programs start anew for each pair as well.
    """
    table = pd.read_csv(folder / METRICS_FILE, dtype={"pair_id": str})
    scores = table.groupby("pair_id").mean(numeric_only=True).drop(columns="label")
    for stage in ("initial_", "prealigned_", ""):
        if f"{stage}dice" in table:
            scores[f"{stage}lost"] = is_lost(table, stage).groupby(table["pair_id"]).sum()
    if not (folder / PREDICT_FILE).exists():
        return scores
    predictions = read_predictions(folder)
    pairs = pd.DataFrame([pair.model_dump() for pair in predictions.pairs]).set_index("pair_id")
    run = PredictionRun.read(folder)
    scores["seconds"] = pairs["seconds"] if run is None else (np.nan if run.spent is None else run.spent / len(pairs))
    scores["peak_memory_gb"] = pairs["peak_memory_gb"].fillna(predictions.peak_memory_gb or np.nan)
    scores["peak_gpu_memory_gb"] = predictions.peak_gpu_memory_gb
    return scores


def scores_before_registration(tables: Sequence[pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The same scores before registration, titled "Initial" and, where pre-alignment changed them, "Pre-aligned".

    Args:
        tables: scores of several methods by pair; the start of a pair is the same for all of them.
    """
    scores = pd.concat(tables)
    scores = scores[~scores.index.duplicated()]
    stages = {INITIAL_TITLE: select_stage(scores, "initial_")}
    if is_prealigned(scores):
        stages[PREALIGNED_TITLE] = select_stage(scores, "prealigned_")
    return stages


def is_prealigned(scores: pd.DataFrame, metrics: Sequence[str] = ("dice", "tre_mm")) -> bool:
    """Whether scores after pre-alignment are there, and differ from the initial ones in any of these metrics."""
    return any(
        not scores[f"prealigned_{metric}"].equals(scores[f"initial_{metric}"])
        for metric in metrics
        if f"prealigned_{metric}" in scores
    )


def select_stage(scores: pd.DataFrame, stage: str) -> pd.DataFrame:
    """The columns of an earlier stage, ``initial_`` or ``prealigned_``, without that prefix."""
    return scores.filter(regex=f"^{stage}").rename(columns=lambda name: name.removeprefix(stage))
