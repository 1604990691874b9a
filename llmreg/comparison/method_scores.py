"""Score a method on the pairs of a comparison. What is done is kept: called again, it goes on where it stopped."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from llmreg.comparison.benchmark_settings import BenchmarkSettings
from llmreg.comparison.classical_runs import register_pairs
from llmreg.comparison.judged_pairs import digest_scoring_inputs, judged_pairs
from llmreg.comparison.learned_runs import train_and_predict
from llmreg.comparison.methods import Method
from llmreg.comparison.pair_tables import classical_pairs
from llmreg.comparison.score_tables import read_pair_scores
from llmreg.data.dataset import Dataset, Pair
from llmreg.errors import UserError
from llmreg.evaluation.evaluate import evaluate_folder, is_scored
from llmreg.evaluation.summary import METRICS_FILE
from llmreg.files import read_json, write_json
from llmreg.paths import fold_folder
from llmreg.predictions import read_predictions

# This file in a method's folder of predictions records what the scores were made from.
_SCORED_FILE = "scored.json"


def score_method(settings: BenchmarkSettings, method: Method, dataset: Dataset, output: Path) -> pd.DataFrame:
    """Register the pairs of all folds, unless that is done, and score them.

    Args:
        settings: of the comparison.
        method: a learned or a classical one.
        dataset: that of the settings.
        output: predictions go to ``<output>/<method>/fold_<k>``.

    Returns:
        A row a pair of all folds, columns as :data:`llmreg.comparison.tables.COLUMNS` has them.

    Raises:
        UserError: the method crashed, is not installed or failed for a pair.
    """
    tables = []
    for fold in settings.folds:
        folder = fold_folder(output / method.name, fold)
        pairs = judged_pairs(settings, fold, dataset)
        if method.kind == "learned":
            train_and_predict(settings, method, fold, pairs, dataset, folder)
        else:
            register_pairs(method.name, classical_pairs(settings, pairs, dataset), folder, settings.peer_seconds)
        failed = read_predictions(folder).failed
        if failed:
            # Means over the other pairs could not be compared with those of other methods.
            raise UserError(f"{method.name}: {len(failed)} of {len(pairs)} pairs failed: {failed[0].failed}")
        _score(folder, pairs, dataset)
        tables.append(read_pair_scores(folder))
    return pd.concat(tables)


def read_label_scores(settings: BenchmarkSettings, method: Method, output: Path) -> pd.DataFrame:
    """Read the scores of a method, a row a pair and label."""
    files = [fold_folder(output / method.name, fold) / METRICS_FILE for fold in settings.folds]
    # Pairs that have landmarks alone have a row without a label.
    return pd.concat(map(pd.read_csv, files), ignore_index=True).dropna(subset="label")


def _score(folder: Path, pairs: Sequence[Pair], dataset: Dataset) -> None:
    """Score predictions, unless they are scored and nothing has changed since."""
    record = folder / _SCORED_FILE
    current = {"judged_by": digest_scoring_inputs(pairs, dataset)}
    if not is_scored(folder) or not record.exists() or read_json(record) != current:
        record.unlink(missing_ok=True)
        evaluate_folder(folder, dataset.folder)
        write_json(record, current)
