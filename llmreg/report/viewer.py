"""What the page's viewer of slices is given: each shown pair's pictures and numbers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from llmreg.comparison.tables import COLUMNS
from llmreg.errors import UserError
from llmreg.report.rendering import colour_of
from llmreg.report.shown_predictions import Predictions, ShownPair
from llmreg.report.stacks import Stacks, stacks_of
from llmreg.report.volumes import Result, read_result, read_scene
from llmreg.workers import in_parallel

log = logging.getLogger(__name__)

Failures = list[tuple[str, str]]


@dataclass(frozen=True, eq=False)
class Viewer:
    """Attributes:
    about: JSON-able: ``methods`` (titles), ``best`` (its number), ``labels`` (id -> name, colour), ``pairs``.
    pictures: JSON-able, of each pair: ``shared`` and ``methods`` of :class:`llmreg.report.stacks.Stacks`.
    failed: (what, why) of pairs and methods that could not be drawn.
    """

    about: dict[str, Any]
    pictures: list[dict[str, Any]]
    failed: tuple[tuple[str, str], ...]


def viewer_of(methods: Sequence[Predictions], pairs: Sequence[ShownPair], processes: int) -> Viewer:
    """Draw the pairs, several at the same time."""
    shown: list[dict[str, Any]] = []
    pictures: list[dict[str, Any]] = []
    failed: Failures = []
    for pair, (stacks, problems) in zip(pairs, in_parallel(_drawn, pairs, processes, "Draw", "pair"), strict=True):
        for number, why in problems:
            what = pair.pair_id if number is None or len(methods) == 1 else f"{methods[number].title}: {pair.pair_id}"
            failed.append((what, why))
            log.warning("%s is not shown: %s", what, why)
        if stacks is not None:
            shown.append(_about(pair, stacks, methods))
            pictures.append({"shared": stacks.shared, "methods": stacks.methods})
    dice = [method.scores["dice"].mean() for method in methods]
    about = {
        "methods": [method.title for method in methods],
        "best": int(np.argmax(np.nan_to_num(np.array(dice, float), nan=-1.0))),
        "labels": _labels(methods),
        "pairs": shown,
    }
    return Viewer(about, pictures, tuple(failed))


def _drawn(pair: ShownPair) -> tuple[Stacks | None, list[tuple[int | None, str]]]:
    """The pair's pictures, and by the method's number, or None for all, what could not be drawn and why."""
    problems: list[tuple[int | None, str]] = []
    try:
        scene = read_scene(pair)
    except UserError as error:
        return None, [(None, str(error))]
    results: list[Result | None] = []
    for number, made in enumerate(pair.made):
        result = None
        if made is not None:
            try:
                result = read_result(scene, made)
            except UserError as error:
                problems.append((number, str(error)))
        results.append(result)
    return (stacks_of(scene, results) if any(results) else None), problems


def _about(pair: ShownPair, stacks: Stacks, methods: Sequence[Predictions]) -> dict[str, Any]:
    known = zip(methods, stacks.methods, stacks.uncertainty_mm, strict=True)
    return {
        "id": pair.pair_id,
        "fixed": pair.images.fixed,
        "moving": pair.images.moving,
        "place": _place(pair),
        "planes": stacks.planes,
        "methods": [
            None if made is None else {"uncertainty_mm": top, **_scores(method.scores, pair.pair_id)}
            for method, made, top in known
        ],
    }


def _place(pair: ShownPair) -> str:
    if pair.place is None:
        return ""
    if pair.out_of == 1:
        return "the only one"
    ends = {1: "the worst", pair.out_of: "the best"}
    return f"{ends.get(pair.place, f'number {pair.place}')} of {pair.out_of}"


def _scores(scores: pd.DataFrame, pair_id: str) -> dict[str, Any]:
    """``numbers``: (title, before, after) as text; ``labels``: (id, Dice before, Dice after) in percent."""
    own = scores[scores["pair_id"] == pair_id]
    numbers = []
    for key, column in COLUMNS.items():
        if key in own and own[key].notna().any():
            values = [own[name].mean() if name in own else np.nan for name in (f"initial_{key}", key)]
            texts = ["" if np.isnan(value) else f"{column.scale * value:.{column.digits}f}" for value in values]
            numbers.append([column.title.replace("<=", "\u2264"), *texts])
    rows = own[["label", "initial_dice", "dice"]].dropna(subset="label").itertuples(index=False)
    labels = [[int(label), *(None if np.isnan(v) else round(100 * v, 1) for v in dice)] for label, *dice in rows]
    return {"numbers": numbers, "labels": labels}


def _labels(methods: Sequence[Predictions]) -> dict[str, dict[str, str]]:
    known = pd.concat([method.scores[["label", "name"]] for method in methods]).dropna(subset="label")
    return {
        str(label): {"name": str(name), "colour": "#{:02x}{:02x}{:02x}".format(*colour_of(int(label)))}
        for label, name in known.drop_duplicates("label").itertuples(index=False)
    }
