"""A method's figures on the pairs of a study. What is done is kept: called again, it goes on where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from llmreg.comparison.learned import train_and_predict
from llmreg.comparison.methods import Method
from llmreg.comparison.pair_tables import peer_pairs
from llmreg.comparison.peers import register_pairs
from llmreg.comparison.scored import failures, per_pair
from llmreg.comparison.study import Study, judged_by, judged_pairs
from llmreg.data.dataset import Dataset, Pair
from llmreg.errors import UserError
from llmreg.evaluation.evaluate import evaluate_folder, is_scored
from llmreg.evaluation.summary import METRICS_FILE
from llmreg.files import read_json, write_json

# In a method's folder of predictions: what its scores were made from.
_SCORED_FILE = "scored.json"


def scores(study: Study, method: Method, dataset: Dataset, output: Path) -> pd.DataFrame:
    """Figures of a method, a row a pair of all folds, as :data:`llmreg.comparison.tables.COLUMNS` has them.

    Args:
        study: what is compared on.
        method: learned or another program.
        dataset: the study's.
        output: predictions go to ``<output>/<method>/fold_<k>``.

    Raises:
        UserError: it crashed, is not installed or failed for a pair; the sentence is its row.
    """
    found = []
    for fold in study.folds:
        folder = _folder(output, method, fold)
        pairs = judged_pairs(study, fold, dataset)
        if method.kind == "learned":
            train_and_predict(study, method, fold, pairs, dataset, folder)
        else:
            register_pairs(method.name, peer_pairs(study, pairs, dataset), folder, study.peer_seconds)
        failed = failures(folder)
        if failed:
            # Means over other pairs could not be compared.
            raise UserError(f"{len(failed)} of {len(pairs)} pairs failed: {failed[0]['failed']}")
        _score(folder, pairs, dataset)
        found.append(per_pair(folder))
    return pd.concat(found)


def of_labels(study: Study, method: Method, output: Path) -> pd.DataFrame:
    """The rows of a scored method, one a pair and label."""
    folders = [_folder(output, method, fold) for fold in study.folds]
    rows = pd.concat([pd.read_csv(folder / METRICS_FILE) for folder in folders], ignore_index=True)
    # Pairs with landmarks alone have a row, too.
    return rows.dropna(subset="label")


def _folder(output: Path, method: Method, fold: str) -> Path:
    return output / method.name / f"fold_{fold}"


def _score(folder: Path, pairs: Sequence[Pair], dataset: Dataset) -> None:
    """Score predictions, unless they are and nothing has changed."""
    record, now = folder / _SCORED_FILE, {"judged_by": judged_by(pairs, dataset)}
    if not is_scored(folder) or not record.exists() or read_json(record) != now:
        record.unlink(missing_ok=True)
        evaluate_folder(folder, dataset.folder)
        write_json(record, now)
