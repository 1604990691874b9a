"""Methods of this package on a fold: trained where they are not, then predicted.

Each step is a command in a process of its own, so that its memory is its own and its crash a row.
"""

from __future__ import annotations

import logging
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmreg.comparison.methods import Method
from llmreg.comparison.pair_tables import write_pairs
from llmreg.comparison.peers import are_there
from llmreg.comparison.scored import BENCHMARK_FILE, failures
from llmreg.comparison.study import TEST, Study, registered_from
from llmreg.data.dataset import Dataset, Pair, pairs_among, pairs_digest
from llmreg.errors import Interrupted, UserError
from llmreg.files import file_digest, read_json, write_json
from llmreg.inference.pair_inputs import PAIRS_FILE, PREDICT_FILE
from llmreg.plans.plans import Plans
from llmreg.preprocessing import dataset_steps as pipeline
from llmreg.training import experiment
from llmreg.training.checkpoints import path_of, read_state

log = logging.getLogger(__name__)

# An epoch, where the length of training is a time: short, so that whole ones fill it well.
STEPS_PER_EPOCH = 50


@dataclass(frozen=True)
class _Training:
    """How a method is trained on a fold, and what comes of it.

    Attributes:
        fold: as ``llmreg_train`` knows it: a number or ``all``.
        plans: the method's.
        configuration: of these plans.
        command: what trains, or goes on.
        model: the folder of the model.
    """

    fold: str
    plans: Plans
    configuration: str
    command: list[str]
    model: Path

    @property
    def final(self) -> Path:
        """The checkpoint of a training that has come to its end."""
        return path_of(self.model / f"fold_{self.fold}", "final")


def train_and_predict(
    study: Study, method: Method, fold: str, pairs: Sequence[Pair], dataset: Dataset, folder: Path
) -> None:
    """Train where that is not done, and predict pairs into ``folder``, those that are not there as they would be.

    Raises:
        UserError: a command failed, or a model of that name is of other plans or other pairs.
        Interrupted: told to stop; what is done is kept.
    """
    training = _training(study, method, fold)
    if not training.final.exists():
        _run(training.command)
    _refuse_others(training, study, dataset)
    about = {
        "checkpoint": file_digest(training.final),
        "registered_from": registered_from(pairs, dataset),
        "flags": list(method.flags),
    }
    record = folder / BENCHMARK_FILE
    known = read_json(record) if record.exists() else {}
    if known.get("about") == about:
        if _is_whole(folder):
            return
    else:
        # Of another training, or of images that have changed.
        shutil.rmtree(folder, ignore_errors=True)
        known = {"about": about, "spent": 0.0}
    write_pairs(folder / PAIRS_FILE, pairs, dataset)
    finished = failures(folder) == []
    # Unknown, should this process be killed.
    write_json(record, {"about": about})
    (folder / PREDICT_FILE).unlink(missing_ok=True)
    began = time.monotonic()
    command = ["predict", "-i", str(folder / PAIRS_FILE), "-o", str(folder), "-m", str(training.model)]
    command += ["-f", training.fold, "--continue", "--save", "field", "prealignment", *method.flags, *_on(study)]
    try:
        _run(command)
    except UserError:
        # Pairs that failed are listed there.
        if not (folder / PREDICT_FILE).exists():
            raise
    finally:
        if "spent" in known:
            # What was finished and has been removed took no longer for that.
            spent = 0.0 if finished else time.monotonic() - began
            write_json(record, {"about": about, "spent": known["spent"] + spent})


def _is_whole(folder: Path) -> bool:
    """Whether all pairs were predicted and are there: what failed may pass the next time."""
    return failures(folder) == [] and all(are_there(folder, row) for row in read_json(folder / PREDICT_FILE)["pairs"])


def _training(study: Study, method: Method, fold: str) -> _Training:
    trained = "all" if fold == TEST else fold
    changes = list(method.changes)
    parts = [] if study.plans == "default" else [study.plans]
    parts.append(method.trained_as)
    command = ["train", study.dataset, trained, "-p", study.plans, "--continue", "--workers", str(study.workers)]
    # Its pairs are predicted and scored here; those of fold all are many, and were trained on.
    command += ["--no_validation", *_on(study)]
    if study.minutes is not None:
        changes.append(f"training.steps_per_epoch={STEPS_PER_EPOCH}")
        parts.append(f"{study.minutes:g}min")
        command += ["--minutes", f"{study.minutes:g}"]
    name = "_".join(parts) if changes else None
    if name is not None:
        command += ["--set", *changes, "--as", name]
    if method.network is not None:
        command += ["--network", method.network]
    if study.configuration is not None:
        command += ["-c", study.configuration]
    preprocessed = pipeline.preprocessed_dataset(study.dataset)
    plans = experiment.planned(preprocessed, study.plans, changes, name, network=method.network)
    configuration = study.configuration or plans.default_configuration
    model = experiment.model_folder(preprocessed.name, plans, configuration)
    return _Training(trained, plans, configuration, command, model)


def _refuse_others(training: _Training, study: Study, dataset: Dataset) -> None:
    """Raises UserError when a trained model is of other plans or pairs; warns when it is of another length."""
    model, plans = training.model, training.plans
    state = read_state(training.final)
    if state.plans_digest != experiment.with_layers(plans).digest(training.configuration):
        raise UserError(f"{model} was trained with other plans than '{plans.plans_name}': remove it, or rename it.")
    _, split = experiment.fold_of(pipeline.preprocessed_dataset(study.dataset), training.fold, dataset)
    pairs = pairs_among(dataset, experiment.usable_cases(split, dataset, plans))
    if state.pairs_sha256 not in (None, pairs_digest(pairs)):
        raise UserError(
            f"{model} was trained on other pairs than fold {training.fold} has now: remove it, or rename it."
        )
    if study.minutes is None and state.epochs != plans.training.epochs:
        log.warning(
            "%s was trained for %d epochs, not the plans' %d: it is compared as it is.",
            model.name,
            state.epochs,
            plans.training.epochs,
        )


def _run(arguments: Sequence[str]) -> None:
    """A command of this package, whose progress is seen.

    Raises:
        UserError: it failed.
        Interrupted: it was told to stop; what it had done is kept.
    """
    command, *rest = arguments
    process = subprocess.Popen([sys.executable, "-m", f"llmreg.commands.{command}", *rest], stdin=subprocess.DEVNULL)
    before = signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
    try:
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:
                # The terminal has told the command, too, which finishes its step and keeps it.
                continue
    finally:
        signal.signal(signal.SIGTERM, before)
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM):
        number = code - 128 if code > 0 else -code
        raise Interrupted(number, "run the command again to go on.")
    if code:
        raise UserError(f"llmreg_{command} ended with exit code {code}: see what it said above.")


def _on(study: Study) -> list[str]:
    return [] if study.device is None else ["--device", study.device]
