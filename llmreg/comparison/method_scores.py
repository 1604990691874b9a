"""Score a method on the pairs of a comparison. What is done is kept: called again, it goes on where it stopped."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from llmreg.comparison.benchmark_errors import MethodFailed
from llmreg.comparison.benchmark_settings import BenchmarkSettings
from llmreg.comparison.classical_runs import register_pairs
from llmreg.comparison.judged_pairs import judged_pairs, scored_from
from llmreg.comparison.learned_runs import train_and_predict
from llmreg.comparison.methods import Method
from llmreg.comparison.pair_tables import classical_pairs
from llmreg.comparison.score_tables import read_pair_scores
from llmreg.data.dataset import Dataset, Pair
from llmreg.evaluation.evaluate import evaluate_folder, is_scored
from llmreg.evaluation.summary import METRICS_FILE
from llmreg.files import read_json, write_json
from llmreg.paths import fold_folder
from llmreg.predictions import read_predictions

# In a method's folder of predictions: what its scores were made from.
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
        folder = _folder_of(output, method, fold)
        pairs = judged_pairs(settings, fold, dataset)
        if method.kind == "learned":
            train_and_predict(settings, method, fold, pairs, dataset, folder)
        else:
            register_pairs(method.name, classical_pairs(settings, pairs, dataset), folder, settings.peer_seconds)
        failed = read_predictions(folder).failed
        if failed:
            # Means over the other pairs could not be compared with those of other methods.
            raise MethodFailed(method.name, f"{len(failed)} of {len(pairs)} pairs failed: {failed[0].failed}")
        _score(folder, pairs, dataset)
        tables.append(read_pair_scores(folder))
    return pd.concat(tables)


def read_label_scores(settings: BenchmarkSettings, method: Method, output: Path) -> pd.DataFrame:
    """Read the scores of a method, a row a pair and label."""
    folders = [_folder_of(output, method, fold) for fold in settings.folds]
    rows = pd.concat([pd.read_csv(folder / METRICS_FILE) for folder in folders], ignore_index=True)
    # Pairs that have landmarks alone have a row without a label.
    return rows.dropna(subset="label")


def _folder_of(output: Path, method: Method, fold: str) -> Path:
    return fold_folder(output / method.name, fold)


def _score(folder: Path, pairs: Sequence[Pair], dataset: Dataset) -> None:
    """Score predictions, unless they are scored and nothing has changed since."""
    record, current = folder / _SCORED_FILE, {"judged_by": scored_from(pairs, dataset)}
    if not is_scored(folder) or not record.exists() or read_json(record) != current:
        record.unlink(missing_ok=True)
        evaluate_folder(folder, dataset.folder)
        write_json(record, current)
