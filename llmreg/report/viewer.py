"""The data of the page's viewer of slices: pictures and numbers of each shown pair."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from llmreg.comparison.tables import COLUMNS
from llmreg.errors import UserError
from llmreg.report.rendering import colour_of
from llmreg.report.shown_predictions import MethodResults, ShownPair
from llmreg.report.stacks import Stacks, encode_stacks
from llmreg.report.volumes import Result, read_result, read_scene
from llmreg.workers import map_in_processes

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Viewer:
    """What the page embeds as JSON.

    Attributes:
        about: ``methods`` (titles), ``best`` (number of the best one), ``labels`` (id -> name, colour), ``pairs``.
        pictures: of each pair ``shared`` and ``methods`` of :class:`llmreg.report.stacks.Stacks`.
        failed: (subject, reason) of pairs and methods that could not be drawn.
    """

    about: dict[str, Any]
    pictures: list[dict[str, Any]]
    failed: tuple[tuple[str, str], ...]


def draw_pairs(methods: Sequence[MethodResults], pairs: Sequence[ShownPair], processes: int) -> Viewer:
    """Draw the pairs, several at the same time in processes of their own."""
    shown: list[dict[str, Any]] = []
    pictures: list[dict[str, Any]] = []
    failed: list[tuple[str, str]] = []
    results = map_in_processes(_draw_pair, pairs, processes, "Draw", "pair")
    for pair, (stacks, problems) in zip(pairs, results, strict=True):
        for number, reason in problems:
            title = "" if number is None or len(methods) == 1 else f"{methods[number].title}: "
            failed.append((f"{title}{pair.pair_id}", reason))
            log.warning("%s%s is not shown: %s", title, pair.pair_id, reason)
        if stacks is not None:
            shown.append(_describe_pair(pair, stacks, methods))
            pictures.append({"shared": stacks.shared, "methods": stacks.methods})
    dice = [method.scores["dice"].mean() for method in methods]
    about = {
        "methods": [method.title for method in methods],
        "best": int(np.argmax(np.nan_to_num(np.array(dice, float), nan=-1.0))),
        "labels": _describe_labels(methods),
        "pairs": shown,
    }
    return Viewer(about, pictures, tuple(failed))


def _draw_pair(pair: ShownPair) -> tuple[Stacks | None, list[tuple[int | None, str]]]:
    """The pair's pictures; reasons why it could not be drawn, by the method's number, or None for the whole pair."""
    try:
        scene = read_scene(pair)
    except UserError as error:
        return None, [(None, str(error))]
    results: list[Result | None] = [None] * len(pair.predictions)
    problems: list[tuple[int | None, str]] = []
    for number, prediction in enumerate(pair.predictions):
        if prediction is not None:
            try:
                results[number] = read_result(scene, prediction)
            except UserError as error:
                problems.append((number, str(error)))
    return (encode_stacks(scene, results) if any(results) else None), problems


def _describe_pair(pair: ShownPair, stacks: Stacks, methods: Sequence[MethodResults]) -> dict[str, Any]:
    return {
        "id": pair.pair_id,
        "fixed": pair.images.fixed,
        "moving": pair.images.moving,
        "place": _describe_rank(pair),
        "planes": stacks.planes,
        "methods": [
            None if pictures is None else {"uncertainty_mm": top, **_select_scores(method.scores, pair.pair_id)}
            for method, pictures, top in zip(methods, stacks.methods, stacks.uncertainty_mm, strict=True)
        ],
    }


def _describe_rank(pair: ShownPair) -> str:
    if pair.rank is None:
        return ""
    if pair.out_of == 1:
        return "the only one"
    ends = {1: "the worst", pair.out_of: "the best"}
    return f"{ends.get(pair.rank, f'number {pair.rank}')} of {pair.out_of}"


def _select_scores(scores: pd.DataFrame, pair_id: str) -> dict[str, Any]:
    """``numbers``: (title, before, after) as text; ``labels``: (id, Dice before, Dice after) in percent."""
    rows = scores[scores["pair_id"] == pair_id]
    numbers = []
    for key, column in COLUMNS.items():
        if key in rows and rows[key].notna().any():
            values = [rows[name].mean() if name in rows else np.nan for name in (f"initial_{key}", key)]
            texts = ["" if np.isnan(value) else f"{column.scale * value:.{column.digits}f}" for value in values]
            numbers.append([column.title.replace("<=", "\u2264"), *texts])
    dice_rows = rows[["label", "initial_dice", "dice"]].dropna(subset="label").itertuples(index=False)
    labels = [[int(label), *(None if np.isnan(v) else round(100 * v, 1) for v in dice)] for label, *dice in dice_rows]
    return {"numbers": numbers, "labels": labels}


def _describe_labels(methods: Sequence[MethodResults]) -> dict[str, dict[str, str]]:
    labels = pd.concat([method.scores[["label", "name"]] for method in methods]).dropna(subset="label")
    return {
        str(label): {"name": str(name), "colour": "#{:02x}{:02x}{:02x}".format(*colour_of(int(label)))}
        for label, name in labels.drop_duplicates("label").itertuples(index=False)
    }
