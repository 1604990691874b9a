"""Which of the models trained on a dataset is best: by Dice, HD95 and folding together."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from scipy.stats import wilcoxon

from llmreg.errors import BadArgument, NotPrepared, UserError
from llmreg.evaluation.summary import METRICS_FILE
from llmreg.files import write_json
from llmreg.paths import ModelName, find_fold_folders, find_model_folders
from llmreg.text_tables import format_table
from llmreg.training.checkpoints import checkpoint_path

log = logging.getLogger(__name__)

# The metrics that are compared, and whether more is better.
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
    """The models of a dataset, compared.

    Attributes:
        folds: whose validation pairs were compared.
        num_pairs: how many of them all models were scored on.
        candidates: best first.
    """

    folds: tuple[str, ...]
    num_pairs: int
    candidates: tuple[Candidate, ...]

    @property
    def best(self) -> ModelName:
        """The name of the best model, without its dataset."""
        return ModelName.parse(self.candidates[0].model)

    @property
    def has_several_networks(self) -> bool:
        """Whether plans and configuration alone do not name the best model."""
        return len({ModelName.parse(candidate.model).network for candidate in self.candidates}) > 1

    def table(self) -> str:
        """The candidates as text for a terminal."""
        rows = [
            [row.model, str(row.points), f"{100 * row.dice:.2f}", f"{row.hd95_mm:.2f}", f"{row.folding_percent:.3f}"]
            for row in self.candidates
        ]
        return format_table(["model", "points", "Dice (%)", "HD95 (mm)", "folded (%)"], rows)


def select_best(results: Path, folds: Sequence[str] | None = None) -> Selection:
    """Compare all models of a dataset on the validation pairs of the folds that all of them were trained on.

    Each two models are compared by Wilcoxon's signed-rank test over pairs in each metric, as Learn2Reg ranks: a
    significantly better one (p < 0.05) gets a point, the other loses one. Points decide, then mean Dice.

    Args:
        results: the dataset's folder of results.
        folds: to compare; those that every model has when None. Models without one of them are left out.

    Raises:
        NotPrepared: no model was validated.
        BadArgument: the models have no fold in common.
        UserError: they were validated on different pairs.
    """
    tables: dict[str, dict[str, Path]] = {}
    for folder in find_model_folders(results):
        fold_folders = find_fold_folders(folder)
        files = {fold: path / "validation" / METRICS_FILE for fold, path in fold_folders.items()}
        files = {fold: file for fold, file in files.items() if file.exists()}
        if files:
            tables[folder.name] = files
        elif any(checkpoint_path(path, "final").exists() for path in fold_folders.values()):
            log.warning("%s is left out: it has no validation, which resuming its training adds.", folder.name)
    if not tables:
        raise NotPrepared(f"A validated model in {results}", "train")
    common = sorted(set.intersection(*map(set, tables.values()))) if folds is None else list(folds)
    chosen = {model: files for model, files in tables.items() if set(common) <= files.keys()}
    if not common or not chosen:
        listed = "; ".join(f"{model}: {', '.join(files)}" for model, files in tables.items())
        raise BadArgument("folds", f"No fold was trained by all models ({listed}): name folds, or train the others.")
    for model in tables.keys() - chosen.keys():
        log.warning("%s is left out: it was not trained on fold %s.", model, ", ".join(common))
    rows = {model: pd.concat([pd.read_csv(files[fold]) for fold in common]) for model, files in chosen.items()}
    # The score of a pair is the mean over its labels; the pairs that count are those of all models.
    by_model = {model: table.groupby("pair_id")[list(METRICS)].mean() for model, table in rows.items()}
    scores = pd.concat(by_model, axis=1, join="inner")
    if scores.empty:
        raise UserError(f"The models of {results} were validated on different pairs: train them on the same splits.")
    if len(scores) < FEWEST_PAIRS:
        log.warning("With %d pairs no difference is significant: mean Dice alone decides.", len(scores))
    candidates = [
        Candidate(
            model=model,
            points=sum(_count_points(scores[model], scores[other]) for other in chosen if other != model),
            **{metric: float(scores[model][metric].mean()) for metric in METRICS},
        )
        for model in chosen
    ]
    candidates.sort(key=lambda candidate: (-candidate.points, -candidate.dice, candidate.model))
    return Selection(tuple(common), len(scores), tuple(candidates))


def write_selection(results: Path, selection: Selection, command: str) -> Path:
    """Write ``best_configuration.json`` into the dataset's folder of results; ``command`` predicts with the best."""
    path = results / "best_configuration.json"
    write_json(path, asdict(selection) | {"best": selection.candidates[0].model, "command": command})
    return path


def _count_points(scores: pd.DataFrame, other_scores: pd.DataFrame) -> int:
    points = 0
    for metric, more_is_better in METRICS.items():
        differences = (scores[metric] - other_scores[metric]).dropna()
        # Wilcoxon's test is not defined for differences that are all zero.
        if differences.any() and wilcoxon(differences).pvalue < SIGNIFICANT:
            points += 1 if (differences.mean() > 0) == more_is_better else -1
    return points
