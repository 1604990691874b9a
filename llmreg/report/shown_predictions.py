"""Predicted pairs as a report shows them: their files, their scores, and which of them are shown."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from llmreg.errors import UserError
from llmreg.evaluation.evaluate import is_scored
from llmreg.evaluation.summary import METRICS_FILE
from llmreg.files import read_json
from llmreg.inference.pair_inputs import PREDICT_FILE

log = logging.getLogger(__name__)


class Prediction(BaseModel):
    """A row of ``predict.json``; paths are absolute or relative to its folder."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    folder: Path
    pair_id: str
    fixed: str
    moving: str
    field: str | None = None
    format: str = "itk"
    fixed_path: str | None = None
    moving_path: str | None = None
    fixed_label: str | None = None
    moving_label: str | None = None
    prealignment: str | None = None
    uncertainty: str | None = None

    def path(self, what: str) -> Path | None:
        """Where a file of the pair lies, by the name of its attribute."""
        named = getattr(self, what)
        return None if named is None else self.folder / named


@dataclass(frozen=True, eq=False)
class Predictions:
    """What one method made of the pairs.

    Attributes:
        title: of the method.
        pairs: by pair id, in the order of ``predict.json``.
        failed: (pair id, why).
        scores: a row a pair and label (``documentation/evaluation.md``); empty when nobody scored them.
        about: what ``predict.json`` says of the model and the options.
    """

    title: str
    pairs: Mapping[str, Prediction]
    failed: tuple[tuple[str, str], ...]
    scores: pd.DataFrame
    about: Mapping[str, Any]

    @property
    def labelled(self) -> pd.DataFrame:
        """The scores without the rows of pairs that have landmarks alone."""
        return self.scores.dropna(subset="label")

    @property
    def dice(self) -> pd.Series[float]:
        """Mean over labels by pair; empty when nobody scored them."""
        return mean_dice(self.scores)


@dataclass(frozen=True)
class ShownPair:
    """A pair whose images are shown.

    Attributes:
        pair_id: as everywhere.
        place: from 1, the worst, to ``out_of``, by the Dice that methods reach on average; None without scores.
        out_of: how many pairs there are.
        made: what each method made of it; None where it failed.
    """

    pair_id: str
    place: int | None
    out_of: int
    made: tuple[Prediction | None, ...]

    @property
    def images(self) -> Prediction:
        """A prediction that names the images, where there is one."""
        known = [made for made in self.made if made is not None]
        return next((made for made in known if made.fixed_path and made.moving_path), known[0])


def read_predictions(title: str, folders: Sequence[Path]) -> Predictions:
    """A method's predictions in one folder or, a fold each, in several.

    Raises:
        UserError: ``predict.json`` is missing or not ours.
    """
    pairs: dict[str, Prediction] = {}
    failed: list[tuple[str, str]] = []
    content: dict[str, Any] = {}
    for folder in folders:
        file = folder / PREDICT_FILE
        content = read_json(file)
        try:
            rows = [Prediction.model_validate({**row, "folder": folder}) for row in content["pairs"]]
            failed += [(str(row["pair_id"]), str(row["failed"])) for row in content.get("failed", [])]
        except (ValidationError, KeyError, TypeError, AttributeError):
            raise UserError(f"{file} is not as llmreg_predict writes it: run the prediction again.") from None
        pairs |= {row.pair_id: row for row in rows}
    about = {key: value for key, value in content.items() if key not in ("pairs", "failed")}
    scored = [folder for folder in folders if is_scored(folder)]
    for folder in folders:
        if folder not in scored and (folder / METRICS_FILE).is_file():
            log.warning(
                "%s may be of earlier predictions and is not shown: run llmreg_evaluate again.", folder / METRICS_FILE
            )
    return Predictions(title, pairs, tuple(failed), read_scores(scored), about)


def read_scores(folders: Sequence[Path]) -> pd.DataFrame:
    """The rows of the folders' ``metrics.csv``, one a pair and label; empty when there are none.

    Raises:
        UserError: a file is not one that llmreg_evaluate wrote.
    """
    tables = []
    for folder in folders:
        file = folder / METRICS_FILE
        if not file.is_file():
            continue
        try:
            table = pd.read_csv(file, dtype={"pair_id": str, "name": str}, keep_default_na=False, na_values=[""])
            tables.append(table.astype({"dice": float, "initial_dice": float, "label": "Int64"}))
        except (ValueError, KeyError):
            raise UserError(f"{file} is not as llmreg_evaluate writes it: score the folder again.") from None
    if not tables:
        return pd.DataFrame(columns=["pair_id", "label", "name", "dice", "initial_dice"])
    return pd.concat(tables, ignore_index=True)


def mean_dice(scores: pd.DataFrame, column: str = "dice") -> pd.Series[float]:
    """By pair, over its labels."""
    means: pd.Series[float] = scores.groupby("pair_id")[column].mean()
    return means


def chosen(methods: Sequence[Predictions], count: int) -> list[ShownPair]:
    """The worst and the best pairs, as many of the one as of the other, worst first; all when there are no more.

    Pairs are ordered by the Dice that the methods reach on average, or as they were predicted where nobody scored them.
    """
    known = list(dict.fromkeys(pair_id for method in methods for pair_id in method.pairs))
    dice = pd.concat([method.dice for method in methods], axis=1).mean(axis=1) if methods else pd.Series(dtype=float)
    ranked = sorted((pair_id for pair_id in known if pair_id in dice.dropna().index), key=lambda name: dice[name])
    unranked = [pair_id for pair_id in known if pair_id not in ranked]
    places = {pair_id: place for place, pair_id in enumerate(ranked, start=1)}
    best = count // 2
    both_ends = ranked[: count - best] + ranked[len(ranked) - best :]
    listed = both_ends if len(ranked) > count else (ranked + unranked)[:count]
    return [
        ShownPair(pair_id, places.get(pair_id), len(known), tuple(method.pairs.get(pair_id) for method in methods))
        for pair_id in listed
    ]
