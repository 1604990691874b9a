"""Learned methods on a fold: trained unless a model is there, then predicted.

Each step is a command in a process of its own, so that its memory is its own; a crash is recorded and the comparison
continues.
"""

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmreg.comparison import command_lines
from llmreg.comparison.benchmark_errors import OtherTraining
from llmreg.comparison.benchmark_record import PredictionRun, read_prediction_run, write_prediction_run
from llmreg.comparison.benchmark_settings import TEST, BenchmarkSettings
from llmreg.comparison.judged_pairs import registered_from
from llmreg.comparison.methods import Method
from llmreg.comparison.pair_tables import are_transforms_there, write_pairs
from llmreg.data.dataset import Dataset, Pair, pairs_among, pairs_digest
from llmreg.errors import UserError
from llmreg.files import file_digest
from llmreg.inference.pair_inputs import PAIRS_FILE
from llmreg.paths import fold_folder, preprocessed_dataset
from llmreg.plans.plans import Plans
from llmreg.predictions import PREDICT_FILE, read_predictions
from llmreg.training import experiment
from llmreg.training.checkpoints import checkpoint_path, read_state
from llmreg.training.experiment import PlansChoice, choose_plans

log = logging.getLogger(__name__)

# Steps of an epoch where the length of a training is given in minutes: few, so that whole epochs fill the time well.
STEPS_PER_EPOCH = 50


@dataclass(frozen=True)
class _Training:
    """How a method is trained on a fold.

    Attributes:
        fold: a number, or ``all``.
        plans: the method's.
        configuration: of these plans.
        command: starts or resumes the training.
        model: the folder of the model.
    """

    fold: str
    plans: Plans
    configuration: str
    command: list[str]
    model: Path

    @property
    def final(self) -> Path:
        """The checkpoint of a finished training."""
        return checkpoint_path(fold_folder(self.model, self.fold), "final")


def train_and_predict(
    settings: BenchmarkSettings, method: Method, fold: str, pairs: Sequence[Pair], dataset: Dataset, folder: Path
) -> None:
    """Train a method, unless that is done, and predict those pairs into ``folder`` that are missing or out of date.

    Raises:
        MethodFailed: a command failed.
        OtherTraining: a model of that name was trained with other plans or on other pairs.
        Interrupted: the command was told to stop; what is done is kept.
    """
    training = _describe_training(settings, method, fold)
    if not training.final.exists():
        command_lines.run_command(training.command)
    _check_training(training, settings, dataset)
    about = {
        "checkpoint": file_digest(training.final),
        "registered_from": registered_from(pairs, dataset),
        "flags": command_lines.prediction_options(method),
    }
    run = read_prediction_run(folder)
    if run is None or run.about != about:
        # These are predictions of another training, or of images that have changed.
        shutil.rmtree(folder, ignore_errors=True)
        run = PredictionRun(about=about, spent=0.0)
    elif _is_complete(folder):
        return
    is_finished = (folder / PREDICT_FILE).exists() and not read_predictions(folder).failed
    write_pairs(folder / PAIRS_FILE, pairs, dataset)
    # The time is unknown, should this process be killed.
    write_prediction_run(folder, PredictionRun(about=about))
    (folder / PREDICT_FILE).unlink(missing_ok=True)
    began = time.monotonic()
    words = command_lines.prediction_command(
        settings, method, folder / PAIRS_FILE, folder, training.model, training.fold
    )
    try:
        command_lines.run_command(words)
    except UserError:
        # The command lists pairs that failed in predict.json, and has failed itself without it.
        if not (folder / PREDICT_FILE).exists():
            raise
    finally:
        if run.spent is not None:
            # Replacing a file that was deleted does not count: the finished predictions took no longer.
            spent = 0.0 if is_finished else time.monotonic() - began
            write_prediction_run(folder, PredictionRun(about=about, spent=run.spent + spent))


def _is_complete(folder: Path) -> bool:
    """Whether all pairs were predicted and their files are there. A pair that failed may pass the next time."""
    if not (folder / PREDICT_FILE).exists():
        return False
    predictions = read_predictions(folder)
    return not predictions.failed and all(map(are_transforms_there, predictions.pairs))


def _describe_training(settings: BenchmarkSettings, method: Method, fold: str) -> _Training:
    trained_fold = "all" if fold == TEST else fold
    changes = list(method.changes)
    parts = [] if settings.plans == "default" else [settings.plans]
    parts.append(method.trained_as)
    if settings.minutes is not None:
        changes.append(f"training.steps_per_epoch={STEPS_PER_EPOCH}")
        parts.append(f"{settings.minutes:g}min")
    name = "_".join(parts) if changes else None
    command = command_lines.training_command(settings, method, trained_fold, changes, name)
    preprocessed = preprocessed_dataset(settings.dataset)
    plans = choose_plans(preprocessed, PlansChoice(settings.plans, changes, name, network=method.network))
    configuration = settings.configuration or plans.default_configuration
    model = experiment.model_folder(preprocessed.name, plans, configuration)
    return _Training(trained_fold, plans, configuration, command, model)


def _check_training(training: _Training, settings: BenchmarkSettings, dataset: Dataset) -> None:
    """Raise OtherTraining when a model has other plans or pairs; warn when it was trained for another length."""
    model, plans = training.model, training.plans
    state = read_state(training.final)
    if state.plans_digest != experiment.fetch_weights(plans).digest(training.configuration):
        raise OtherTraining(model, f"with other plans than '{plans.plans_name}'")
    _, split = experiment.find_fold(preprocessed_dataset(settings.dataset), training.fold, dataset)
    pairs = pairs_among(dataset, experiment.usable_cases(split, dataset, plans))
    if state.pairs_sha256 not in (None, pairs_digest(pairs)):
        raise OtherTraining(model, f"on other pairs than fold {training.fold} has now")
    if settings.minutes is None and state.epochs != plans.training.epochs:
        log.warning(
            "%s was trained for %d epochs, not the plans' %d: it is compared as it is.",
            model.name,
            state.epochs,
            plans.training.epochs,
        )
