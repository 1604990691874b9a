"""Which of the models trained on a dataset is best: by Dice, HD95 and folding together."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import wilcoxon

from llmreg.data.splits import fold_name
from llmreg.errors import UserError
from llmreg.evaluation.summary import METRICS_FILE
from llmreg.files import write_json

log = logging.getLogger(__name__)

BEST_FILE = "best_configuration.json"
# Whether more is better.
METRICS = {"dice": True, "hd95_mm": False, "folding_percent": False}
SIGNIFICANT = 0.05
# With fewer pairs no difference can be significant.
FEWEST_PAIRS = 6


@dataclass(frozen=True)
class Candidate:
    """A model and its validation.

    Attributes:
        model: name of its folder, ``<network>__<plans>__<configuration>``.
        dice: mean over pairs, a fraction.
        hd95_mm: mean over pairs.
        folding_percent: mean over pairs.
        points: how many models it is significantly better than, less those that are better than it, over the metrics.
    """

    model: str
    dice: float
    hd95_mm: float
    folding_percent: float
    points: int


@dataclass(frozen=True)
class Selection:
    """Attributes:
    folds: whose validation pairs were compared.
    num_pairs: how many of them all models were scored on.
    candidates: best first.
    """

    folds: tuple[str, ...]
    num_pairs: int
    candidates: tuple[Candidate, ...]

    def command(self, dataset: str) -> str:
        """What predicts with the best one; ``dataset`` is an id or whole name."""
        network, plans, configuration = self.candidates[0].model.split("__")
        several = len({one.model.split("__")[0] for one in self.candidates}) > 1
        which = f" --network {network}" if several else ""
        return f"llmreg_predict -i in/ -o out/ -d {dataset} -p {plans} -c {configuration}{which}"

    def table(self) -> str:
        """The candidates as text for a terminal."""
        head = f"{'model':<44}{'points':>8}{'Dice (%)':>10}{'HD95 (mm)':>11}{'folded (%)':>12}\n"
        return head + "\n".join(
            f"{one.model:<44}{one.points:>8}{100 * one.dice:>10.2f}{one.hd95_mm:>11.2f}{one.folding_percent:>12.3f}"
            for one in self.candidates
        )


def select(results: Path, folds: Sequence[str] | None = None) -> Selection:
    """Compare all models of a dataset on the validation pairs of the folds that all of them were trained on.

    Each two models are compared by Wilcoxon's signed-rank test over pairs in each metric, as Learn2Reg ranks: a
    significantly better one (p < 0.05) gets a point, the other loses one. Points decide, then mean Dice.

    Args:
        results: the dataset's folder of results.
        folds: to compare; those that every model has when None. Models without one of them are left out.

    Raises:
        UserError: there is nothing to compare.
    """
    tables = {
        folder.name: {fold_name(path.parents[1].name): path for path in found}
        for folder in sorted(results.glob("*__*__*"))
        if (found := sorted(folder.glob(f"fold_*/validation/{METRICS_FILE}")))
    }
    for folder in sorted({path.parents[1] for path in results.glob("*__*__*/fold_*/checkpoint_final.safetensors")}):
        if folder.name not in tables:
            log.warning("%s is left out: it has no validation, which llmreg_train --continue adds.", folder.name)
    if not tables:
        raise UserError(f"{results} holds no validated model: train one first (llmreg_train).")
    common = sorted(set.intersection(*map(set, tables.values()))) if folds is None else list(folds)
    chosen = {model: own for model, own in tables.items() if set(common) <= own.keys()}
    if not common or not chosen:
        listed = "; ".join(f"{model}: {', '.join(own)}" for model, own in tables.items())
        raise UserError(f"No fold was trained by all models ({listed}): name some with -f, or train the others.")
    for model in tables.keys() - chosen.keys():
        log.warning("%s is left out: it was not trained on fold %s.", model, ", ".join(common))
    scores = {model: _per_pair([own[fold] for fold in common]) for model, own in chosen.items()}
    shared = sorted(set.intersection(*(set(table.index) for table in scores.values())))
    if not shared:
        raise UserError(f"The models of {results} were validated on different pairs: train them on the same splits.")
    if len(shared) < FEWEST_PAIRS:
        log.warning("With %d pairs no difference is significant: mean Dice alone decides.", len(shared))
    scores = {model: table.loc[shared] for model, table in scores.items()}
    candidates = [
        Candidate(
            model=model, points=_points(model, scores), **{metric: float(table[metric].mean()) for metric in METRICS}
        )
        for model, table in scores.items()
    ]
    ordered = sorted(candidates, key=lambda one: (-one.points, -one.dice, one.model))
    return Selection(tuple(common), len(shared), tuple(ordered))


def write_selection(results: Path, selection: Selection) -> Path:
    """Write ``best_configuration.json`` into the dataset's folder of results."""
    content: dict[str, Any] = asdict(selection) | {
        "best": selection.candidates[0].model,
        "command": selection.command(results.name),
    }
    write_json(results / BEST_FILE, content)
    return results / BEST_FILE


def _per_pair(paths: Sequence[Path]) -> pd.DataFrame:
    """A row a pair: means over its labels."""
    table = pd.concat([pd.read_csv(path) for path in paths])
    means: pd.DataFrame = table.groupby("pair_id")[list(METRICS)].mean()
    return means


def _points(model: str, scores: dict[str, pd.DataFrame]) -> int:
    points = 0
    for other in scores.keys() - {model}:
        for metric, more_is_better in METRICS.items():
            apart = (scores[model][metric] - scores[other][metric]).dropna()
            # Without a difference there is nothing to test.
            if apart.any() and wilcoxon(apart).pvalue < SIGNIFICANT:
                points += 1 if (apart.mean() > 0) == more_is_better else -1
    return points
