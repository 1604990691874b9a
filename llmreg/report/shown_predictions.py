"""Predicted pairs as a report shows them: their files, their scores, and which of them are shown."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from llmreg.errors import UnreadableFile
from llmreg.evaluation.evaluate import is_scored
from llmreg.evaluation.summary import METRICS_FILE
from llmreg.predictions import PredictedPair, Provenance, read_predictions

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class MethodResults:
    """The predictions of one method.

    Attributes:
        title: of the method.
        pairs: by pair id, in the order of ``predict.json``.
        failed: (pair id, reason).
        scores: a row a pair and label (``documentation/evaluation.md``); empty without scores.
        provenance: model and options, of the last folder where there are several.
    """

    title: str
    pairs: Mapping[str, PredictedPair]
    failed: tuple[tuple[str, str], ...]
    scores: pd.DataFrame
    provenance: Provenance

    @property
    def label_scores(self) -> pd.DataFrame:
        """The scores without the rows of pairs that have landmarks alone."""
        return self.scores.dropna(subset="label")


@dataclass(frozen=True)
class ShownPair:
    """A pair whose images are shown.

    Attributes:
        pair_id: names the pair in predictions and scores.
        rank: from 1, the worst, to ``out_of``, by the Dice that methods reach on average; None without scores.
        out_of: number of pairs.
        predictions: one of each method; None where it failed.
    """

    pair_id: str
    rank: int | None
    out_of: int
    predictions: tuple[PredictedPair | None, ...]

    @property
    def images(self) -> PredictedPair:
        """The prediction from which the images are read: the first that names them, or else the first."""
        predictions = [prediction for prediction in self.predictions if prediction is not None]
        return next((p for p in predictions if p.fixed_path and p.moving_path), predictions[0])


def read_results(title: str, folders: Sequence[Path]) -> MethodResults:
    """Read a method's predictions and scores from one folder or, a fold each, from several.

    Raises:
        MissingFile: a folder has no ``predict.json``.
        UnreadableFile: a file is not as this package writes it.
    """
    contents = [read_predictions(folder) for folder in folders]
    scored = [folder for folder in folders if is_scored(folder)]
    for folder in folders:
        if folder not in scored and (folder / METRICS_FILE).is_file():
            log.warning(
                "%s may belong to earlier predictions and is not shown: evaluate the folder again.",
                folder / METRICS_FILE,
            )
    return MethodResults(
        title,
        {pair.pair_id: pair for content in contents for pair in content.pairs},
        tuple((pair.pair_id, pair.failed) for content in contents for pair in content.failed),
        read_scores(scored),
        contents[-1],
    )


def read_scores(folders: Sequence[Path]) -> pd.DataFrame:
    """Read the ``metrics.csv`` of scored folders, a row a pair and label; an empty table when there are no folders.

    Raises:
        UnreadableFile: a file is not as this package writes it.
    """
    tables = []
    for file in (folder / METRICS_FILE for folder in folders):
        try:
            table = pd.read_csv(file, dtype={"pair_id": str, "name": str}, keep_default_na=False, na_values=[""])
            tables.append(table.astype({"dice": float, "initial_dice": float, "label": "Int64"}))
        except (ValueError, KeyError):
            raise UnreadableFile(file, "is not a table of scores", "evaluate the folder again") from None
    if not tables:
        return pd.DataFrame(columns=["pair_id", "label", "name", "dice", "initial_dice"])
    return pd.concat(tables, ignore_index=True)


def select_pairs(methods: Sequence[MethodResults], count: int) -> list[ShownPair]:
    """Select the worst and the best pairs, as many of each, worst first; all of them when there are no more.

    Pairs are ordered by the Dice that methods reach on average; without scores they stay in the order of prediction.
    """
    pair_ids = list(dict.fromkeys(pair_id for method in methods for pair_id in method.pairs))
    means = [method.scores.groupby("pair_id")["dice"].mean() for method in methods]
    dice = pd.concat(means, axis=1).mean(axis=1).dropna()
    ranked = sorted((pair_id for pair_id in pair_ids if pair_id in dice.index), key=lambda name: dice[name])
    unranked = [pair_id for pair_id in pair_ids if pair_id not in ranked]
    ranks = {pair_id: rank for rank, pair_id in enumerate(ranked, start=1)}
    best = count // 2
    both_ends = ranked[: count - best] + ranked[len(ranked) - best :]
    selected = both_ends if len(ranked) > count else (ranked + unranked)[:count]
    return [
        ShownPair(pair_id, ranks.get(pair_id), len(pair_ids), tuple(method.pairs.get(pair_id) for method in methods))
        for pair_id in selected
    ]
