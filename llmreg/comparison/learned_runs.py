"""Learned methods on a fold: trained unless a model is there, then predicted.

Each step is a command in a process of its own, so that its memory is its own; a crash is recorded and the comparison
continues.
"""

import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from llmreg.comparison import command_lines
from llmreg.comparison.benchmark_record import PredictionRun
from llmreg.comparison.benchmark_settings import TEST, BenchmarkSettings
from llmreg.comparison.judged_pairs import digest_registration_inputs
from llmreg.comparison.methods import Method
from llmreg.comparison.pair_tables import are_transforms_there, write_pairs
from llmreg.data.dataset import Dataset, Pair, pairs_among, pairs_digest
from llmreg.errors import UserError
from llmreg.files import file_digest
from llmreg.inference.pair_inputs import PAIRS_FILE
from llmreg.paths import fold_folder, preprocessed_dataset
from llmreg.predictions import PREDICT_FILE, read_predictions
from llmreg.training import experiment
from llmreg.training.checkpoints import checkpoint_path, read_state

log = logging.getLogger(__name__)

# An epoch has this number of steps where the length of a training is given in minutes. They are few, so that whole
# epochs fill the time well.
STEPS_PER_EPOCH = 50


def train_and_predict(
    settings: BenchmarkSettings, method: Method, fold: str, pairs: Sequence[Pair], dataset: Dataset, folder: Path
) -> None:
    """Train a method, unless that is done, and predict those pairs into ``folder`` that are missing or out of date.

    Raises:
        UserError: a command failed, or a model of that name was trained with other plans or on other pairs.
        Interrupted: the command was told to stop; what is done is kept.
    """
    trained_fold = "all" if fold == TEST else fold
    model, checkpoint = _train_or_reuse(settings, method, trained_fold, dataset)
    about = {
        "checkpoint": file_digest(checkpoint),
        "registered_from": digest_registration_inputs(pairs, dataset),
        "flags": command_lines.prediction_options(method),
    }
    run = PredictionRun.read(folder)
    if run is None or run.about != about:
        # These are predictions of another training, or of images that have changed.
        shutil.rmtree(folder, ignore_errors=True)
        run = PredictionRun(about=about, spent=0.0)
    write_pairs(folder / PAIRS_FILE, pairs, dataset)
    earlier = read_predictions(folder) if (folder / PREDICT_FILE).exists() else None
    # A pair that failed may pass the next time.
    finished = [] if earlier is None or earlier.failed else earlier.pairs
    if finished and all(map(are_transforms_there, finished)):
        return
    # If this process is killed, the time stays unknown.
    PredictionRun(about=about).write(folder)
    (folder / PREDICT_FILE).unlink(missing_ok=True)
    began = time.monotonic()
    words = command_lines.prediction_command(settings, method, folder / PAIRS_FILE, folder, model, trained_fold)
    try:
        command_lines.run_command(words)
    except UserError:
        # The command lists failed pairs in predict.json. Without that file, the command itself has failed.
        if not (folder / PREDICT_FILE).exists():
            raise
    finally:
        if run.spent is not None:
            # Replacing a file that was deleted does not count: the finished predictions took no longer.
            spent = 0.0 if finished else time.monotonic() - began
            PredictionRun(about=about, spent=run.spent + spent).write(folder)


def _train_or_reuse(settings: BenchmarkSettings, method: Method, fold: str, dataset: Dataset) -> tuple[Path, Path]:
    """Train a method, unless a model of the same plans and pairs is there; return the model's folder and checkpoint."""
    changes = list(method.changes)
    parts = [method.training_name] if settings.plans == "default" else [settings.plans, method.training_name]
    if settings.minutes is not None:
        changes.append(f"training.steps_per_epoch={STEPS_PER_EPOCH}")
        parts.append(f"{settings.minutes:g}min")
    name = "_".join(parts) if changes else None
    preprocessed = preprocessed_dataset(settings.dataset)
    choice = experiment.PlansChoice(settings.plans, changes, name, network=method.network)
    plans = experiment.choose_plans(preprocessed, choice)
    configuration = settings.configuration or plans.default_configuration
    model = experiment.model_folder(preprocessed.name, plans, configuration)
    checkpoint = checkpoint_path(fold_folder(model, fold), "final")
    if not checkpoint.exists():
        command_lines.run_command(command_lines.training_command(settings, method, fold, changes, name))
    state = read_state(checkpoint)
    if state.plans_digest != experiment.fetch_weights(plans).digest(configuration):
        raise UserError(f"{model} was trained with other plans than '{plans.plans_name}': remove it, or rename it.")
    _, split = experiment.find_fold(preprocessed, fold, dataset)
    pairs = pairs_among(dataset, experiment.usable_cases(split, dataset, plans))
    if state.pairs_sha256 not in (None, pairs_digest(pairs)):
        raise UserError(f"{model} was trained on other pairs than fold {fold} has now: remove it, or rename it.")
    if settings.minutes is None and state.epochs != plans.training.epochs:
        log.warning(
            "%s was trained for %d epochs, not the plans' %d: it is compared as it is.",
            model.name,
            state.epochs,
            plans.training.epochs,
        )
    return model, checkpoint
