"""The public functions of this package: plan, preprocess, train, evaluate.

They and the commands are built on the same functions, and do the same. One default differs: here, no other processes
are started unless they are asked for, because these import the script again that asks for them.

Datasets are named by id or whole name, and lie in the folders ``llmreg_raw``, ``llmreg_preprocessed`` and
``llmreg_results`` of the environment (:mod:`llmreg.paths`). All errors that a user can mend derive from
:class:`llmreg.errors.UserError`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pandas as pd

from llmreg.arguments import check_choice, check_count, check_positive
from llmreg.data.case_images import verify_dataset_integrity
from llmreg.errors import BadArgument
from llmreg.evaluation.evaluate import evaluate_folder
from llmreg.evaluation.fold_validation import validate_fold
from llmreg.evaluation.summary import METRICS_FILE, SUMMARY_FILE
from llmreg.files import read_json
from llmreg.geometry.resampling import LabelInterpolation
from llmreg.images.landmarks import Convention
from llmreg.plans.plans import Plans, read_plans
from llmreg.preprocessing.planning.planner import PlannerOverrides
from llmreg.preprocessing.preparation import fingerprint_dataset, load_raw_dataset, plan_dataset, preprocess_dataset
from llmreg.training.experiment import PlansChoice, train_fold
from llmreg.training.options import TrainingOptions
from llmreg.workers import default_process_count


@dataclass(frozen=True)
class MetricSummary:
    """One metric over pairs.

    Attributes:
        mean: over pairs; None without a finite value.
        sd: the standard deviation (n - 1); None with fewer than two values.
        num_pairs: number of pairs that have a value.
    """

    mean: float | None
    sd: float | None
    num_pairs: int


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The scores of a folder of predictions.

    Attributes:
        folder: holds ``metrics.csv`` and ``summary.json``.
        scores: a row a pair and label; ``documentation/evaluation.md`` lists the columns.
        metrics: by the names of the columns, for example ``dice`` and ``initial_dice``.
    """

    folder: Path
    scores: pd.DataFrame
    metrics: Mapping[str, MetricSummary]


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A trained fold.

    Attributes:
        folder: the model's folder, from which :class:`llmreg.Predictor` predicts.
        fold: ``0`` ... or ``all``.
        validation: scores of the fold's validation pairs; None without annotated ones, or where it was not asked for.
    """

    folder: Path
    fold: str
    validation: Evaluation | None


def plan(
    dataset: str | int,
    overrides: PlannerOverrides | None = None,
    *,
    memory_gb: float | None = None,
    overwrite: bool = False,
    verify: bool = False,
    clean: bool = False,
    processes: int | None = 1,
) -> Plans:
    """Extract a dataset's fingerprint and plan its training.

    Example::

        plans = llmreg.plan(1, llmreg.PlannerOverrides(configuration="half"), memory_gb=10)
        print(plans.spacing, plans.reasons["grid"])

    Args:
        dataset: id or whole name.
        overrides: what is decided instead of by the planner.
        memory_gb: memory to plan for; most of this machine's when None.
        overwrite: replace plans that were edited.
        verify: check every image and label map first.
        clean: read all cases again, not only those that changed.
        processes: number of cases that are read at the same time; one a core, as far as memory allows, when None. More
            than one needs ``if __name__ == "__main__":`` in a script.

    Returns:
        The default plans, with a reason for each decision.

    Raises:
        UserError: something is missing, or does not fit.
    """
    check_positive("memory_gb", memory_gb)
    name, processes = str(dataset), _count_processes(processes)
    if verify:
        verify_dataset_integrity(load_raw_dataset(name), processes)
    fingerprint_dataset(name, processes, clean=clean)
    return read_plans(plan_dataset(name, processes, overwrite=overwrite, overrides=overrides, memory_gb=memory_gb))


def preprocess(dataset: str | int, plans: str = "default", *, clean: bool = False, processes: int | None = 1) -> Path:
    """Bring every case of a planned dataset into the plans' common frame.

    Example::

        llmreg.preprocess(1)

    Args:
        dataset: id or whole name.
        plans: name of the plans.
        clean: preprocess all cases again, not only those that changed.
        processes: number of cases at the same time, as for :func:`plan`.

    Returns:
        The folder of the preprocessed volumes.

    Raises:
        UserError: something is missing, or does not fit.
    """
    return preprocess_dataset(str(dataset), plans, _count_processes(processes), clean=clean)


def train(
    dataset: str | int,
    fold: str | int,
    options: TrainingOptions | None = None,
    plans: PlansChoice | str | None = None,
    *,
    configuration: str | None = None,
    device: str | None = None,
    validate: bool = True,
) -> TrainedModel | None:
    """Train a fold of a preprocessed dataset, then predict and score its validation pairs.

    Example::

        model = llmreg.train(1, 0, llmreg.TrainingOptions(minutes=60), llmreg.PlansChoice(network="voxelmorph"))
        predictor = llmreg.Predictor.from_folder(model.folder)

    Args:
        dataset: id or whole name.
        fold: a number or ``all``.
        options: how it is trained.
        plans: which plans, by their name, or by a choice that may change them; the default plans when None.
        configuration: ``full``, ``half`` or another of the plans; their default when None.
        device: such as ``cpu`` or ``cuda:1``; a GPU when None and there is one.
        validate: whether to predict and score the validation pairs.

    Returns:
        The trained fold; None in all processes that torchrun started but the first.

    Raises:
        UserError: something is missing, or does not fit.
        Interrupted: by a signal; the training can be resumed.
    """
    if not isinstance(plans, PlansChoice | str | None):
        raise BadArgument("plans", "plans must be the name of plans of the dataset, or a PlansChoice.")
    trained = train_fold(str(dataset), str(fold), options, plans, configuration=configuration, device_name=device)
    if trained is None:
        return None
    folder = (
        validate_fold(trained.model, trained.fold, trained.dataset, trained.validation_pairs, trained.device)
        if validate
        else None
    )
    return TrainedModel(trained.model, trained.fold, None if folder is None else read_evaluation(folder))


def evaluate(
    predictions: Path | str,
    labels: Path | str | None = None,
    output: Path | str | None = None,
    *,
    landmarks: Path | str | None = None,
    label_interpolation: LabelInterpolation = "nearest",
    convention: Convention = "lps",
    processes: int | None = 1,
) -> Evaluation:
    """Score a folder of predictions: label maps, landmarks and fields, before and after registration.

    Example::

        evaluation = llmreg.evaluate("predictions", "labels")
        print(evaluation.metrics["dice"].mean, evaluation.scores.head())

    Args:
        predictions: the folder.
        labels: folder with a label map ``<case name>.nii.gz`` for each case, or a dataset's folder; those that
            ``predict.json`` names when None.
        output: folder of the results; the predictions' when None.
        landmarks: folder with landmarks ``<case name>.csv``; those that ``predict.json`` names when None.
        label_interpolation: how label maps are warped.
        convention: coordinates of the landmarks in tables.
        processes: number of pairs that are scored at the same time, as for :func:`plan`.

    Raises:
        UserError: files are missing or unreadable, grids do not agree, or nothing can be scored.
    """
    check_choice("label_interpolation", label_interpolation, get_args(LabelInterpolation))
    check_choice("convention", convention, get_args(Convention))
    source, processes = Path(predictions), _count_processes(processes)
    label_folder, target, landmarks = (
        None if folder is None else Path(folder) for folder in (labels, output, landmarks)
    )
    evaluate_folder(source, label_folder, target, processes, label_interpolation, landmarks, convention)
    return read_evaluation(target or source)


def _count_processes(processes: int | None) -> int:
    check_count("processes", processes, 1)
    return processes or default_process_count()


def read_evaluation(folder: Path) -> Evaluation:
    """Read the scores that :func:`evaluate` or :func:`train` wrote into a folder."""
    metrics = {name: MetricSummary(**values) for name, values in read_json(folder / SUMMARY_FILE)["metrics"].items()}
    return Evaluation(folder, pd.read_csv(folder / METRICS_FILE, dtype={"pair_id": str}), metrics)
