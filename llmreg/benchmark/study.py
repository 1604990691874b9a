"""A comparison of methods on a dataset's validation pairs: trained where they are not, predicted, scored, in tables.

Each step is a command in a process of its own, so that its memory is its own and its crash a row. What is done is
kept: called again, the comparison goes on where it stopped.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from llmreg import paths
from llmreg.benchmark.methods import Method
from llmreg.benchmark.peers import PeerPair, are_there, register_pairs
from llmreg.benchmark.scored import BENCHMARK_FILE, per_pair
from llmreg.dataset import Dataset, Pair, load_dataset, pairs_among, pairs_digest
from llmreg.errors import Interrupted, UserError
from llmreg.evaluation.evaluate import evaluate_folder
from llmreg.evaluation.summary import METRICS_FILE
from llmreg.files import read_json, write_json, written_whole
from llmreg.inference.pairs import PAIRS_FILE
from llmreg.inference.predict import PREDICT_FILE
from llmreg.network.config import LLMMorphSettings
from llmreg.preprocessing import pipeline, splits
from llmreg.preprocessing.prealignment import CaseTransform, between
from llmreg.preprocessing.preprocess import read_case_record, volumes_folder
from llmreg.preprocessing.sources import sources_of
from llmreg.training import experiment
from llmreg.training.checkpoint import path_of, read_state

log = logging.getLogger(__name__)

TEST = "test"
# In a method's folder of predictions: what its scores were made from.
_SCORED_FILE = "scored.json"
# An epoch, where the length of training is a time: short, so that whole ones fill it well.
STEPS_PER_EPOCH = 50


@dataclass(frozen=True)
class Study:
    """What is compared on.

    Attributes:
        dataset: id or whole name.
        folds: whose validation pairs count; ``test`` for the dataset's test pairs (its validation pairs where these are
            not labelled), predicted by a training on all else.
        plans: name of the plans that all learned methods start from.
        configuration: ``full`` or ``half``; the plans' when None.
        minutes: of training for each learned method and fold; the plans' number of epochs when None.
        peer_seconds: how long another program may take for a pair.
        device: where to train and predict.
        workers: processes that load and augment.
    """

    dataset: str
    folds: tuple[str, ...] = ("0",)
    plans: str = "default"
    configuration: str | None = None
    minutes: float | None = None
    peer_seconds: float = 900.0
    device: str | None = None
    workers: int = 1


class Failed(Exception):
    """A method cannot be scored; the sentence is its row."""


def scores(study: Study, method: Method, output: Path) -> pd.DataFrame:
    """Figures of a method, a row a pair of all folds, as :data:`llmreg.benchmark.tables.COLUMNS` has them.

    Args:
        study: what is compared on.
        method: learned or another program.
        output: predictions go to ``<output>/<method>/fold_<k>``.

    Raises:
        Failed: it crashed, is not installed or failed for every pair.
    """
    found = [_of_fold(study, method, fold, output / method.name / f"fold_{fold}") for fold in study.folds]
    return pd.concat(found)


def of_labels(study: Study, method: Method, output: Path) -> pd.DataFrame:
    """The rows of a scored method, one a pair and label."""
    return pd.concat(
        [pd.read_csv(output / method.name / f"fold_{fold}" / METRICS_FILE) for fold in study.folds], ignore_index=True
    )


def check(study: Study) -> None:
    """Raises UserError when a fold has no pairs to judge by, before hours are spent on it."""
    dataset = _dataset(study)
    for fold in study.folds:
        judged = _pairs(study, fold, dataset)
        if fold == TEST and not set(judged) <= set(dataset.registration_test):
            log.warning("%s: no test pair is labelled: methods are judged by the validation pairs.", dataset.name)


def judged_by(study: Study) -> str:
    """A hash of the files that all methods are judged by: figures of before they changed are others."""
    dataset = _dataset(study)
    return _judged_by([pair for fold in study.folds for pair in _pairs(study, fold, dataset)], dataset)


def identity(study: Study) -> dict[str, Any]:
    """What must be the same for figures to be comparable, as JSON."""
    plans = pipeline.find_plans(pipeline.preprocessed_dataset(study.dataset), study.plans)
    about = {"dataset": plans.dataset_name, "plans": study.plans, "digest": plans.digest()}
    dataset = _dataset(study)
    about["pairs"] = pairs_digest(pair for fold in study.folds for pair in _pairs(study, fold, dataset))
    return about | {"configuration": study.configuration, "minutes": study.minutes, "folds": list(study.folds)}


def _dataset(study: Study) -> Dataset:
    return load_dataset(paths.find_dataset_folder(study.dataset, paths.raw_folder()))


def _of_fold(study: Study, method: Method, fold: str, folder: Path) -> pd.DataFrame:
    dataset = _dataset(study)
    try:
        if method.kind == "learned":
            _predict(study, method, fold, folder, dataset)
        else:
            register_pairs(method.name, peer_pairs(study, fold, dataset), folder, study.peer_seconds)
        pairs, failed = _pairs(study, fold, dataset), _failures(folder)
        if failed:
            # Means over other pairs could not be compared.
            raise Failed(f"{len(failed)} of {len(pairs)} pairs failed: {failed[0]['failed']}")
        _score(folder, dataset, _judged_by(pairs, dataset))
    except UserError as error:
        raise Failed(str(error)) from error
    return per_pair(folder)


def _score(folder: Path, dataset: Dataset, judged_by: str) -> None:
    """Score predictions, unless they are and nothing has changed."""
    scored, record = folder / METRICS_FILE, folder / _SCORED_FILE
    now = {"judged_by": judged_by, "predicted": (folder / PREDICT_FILE).stat().st_mtime_ns}
    if not scored.exists() or not record.exists() or read_json(record) != now:
        record.unlink(missing_ok=True)
        evaluate_folder(folder, dataset.folder)
        write_json(record, now)


def _predict(study: Study, method: Method, fold: str, folder: Path, dataset: Dataset) -> None:
    """Train where that is not done, and predict the fold's validation pairs."""
    model = _trained(study, method, fold, dataset)
    checkpoint = path_of(model / f"fold_{_trained_fold(fold)}", "final").stat()
    pairs = _pairs(study, fold, dataset)
    about = {
        "checkpoint": [checkpoint.st_size, checkpoint.st_mtime_ns],
        "judged_by": _judged_by(pairs, dataset),
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
        write_pairs(folder / PAIRS_FILE, pairs, dataset)
        known = {"about": about, "spent": 0.0}
    finished = _failures(folder) == []
    # Unknown, should this process be killed.
    write_json(record, {"about": about})
    (folder / PREDICT_FILE).unlink(missing_ok=True)
    began = time.monotonic()
    command = ["predict", "-i", str(folder / PAIRS_FILE), "-o", str(folder), "-m", str(model)]
    command += ["-f", _trained_fold(fold), "--continue", "--save", "field", "prealignment", *method.flags, *_on(study)]
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
    return _failures(folder) == [] and all(are_there(folder, row) for row in read_json(folder / PREDICT_FILE)["pairs"])


def _failures(folder: Path) -> list[dict[str, Any]] | None:
    """The pairs that failed; None without predictions."""
    file = folder / PREDICT_FILE
    return list(read_json(file).get("failed", [])) if file.exists() else None


def _judged_by(pairs: Sequence[Pair], dataset: Dataset) -> str:
    """A hash of what scores are made from beside fields: the cases' files, what is annotated, the label table."""
    cases = [dataset.case(name) for pair in pairs for name in (pair.fixed, pair.moving)]
    content = [[[case.name, sources_of(case)] for case in cases], list(dataset.labels.items())]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _trained(study: Study, method: Method, fold: str, dataset: Dataset) -> Path:
    """The folder of the method's model, which is trained on the fold if it is not."""
    changes = list(method.changes)
    length = [] if study.minutes is None else [f"{study.minutes:g}min"]
    if study.minutes is not None:
        changes.append(f"training.steps_per_epoch={STEPS_PER_EPOCH}")
    name = "_".join([*([] if study.plans == "default" else [study.plans]), method.trained_as, *length])
    trained = _trained_fold(fold)
    command = ["train", study.dataset, trained, "-p", study.plans, "--continue", "--workers", str(study.workers)]
    command += _on(study)
    if study.configuration is not None:
        command += ["-c", study.configuration]
    if method.network is not None:
        command += ["--network", method.network]
    if changes:
        command += ["--set", *changes, "--as", name]
    if study.minutes is not None:
        command += ["--minutes", f"{study.minutes:g}"]
    preprocessed = pipeline.preprocessed_dataset(study.dataset)
    plans = experiment.planned(preprocessed, study.plans, changes, name if changes else None, network=method.network)
    configuration = study.configuration or plans.default_configuration
    model = experiment.model_folder(preprocessed.name, plans, configuration)
    final = path_of(model / f"fold_{trained}", "final")
    if not final.exists():
        _run(command)
    state = read_state(final)
    if state.plans_digest != experiment.with_layers(plans).digest(configuration):
        raise UserError(f"{model} was trained with other plans than '{plans.plans_name}': remove it, or rename it.")
    _, split = experiment.fold_of(preprocessed, trained, dataset)
    pairs = pairs_among(dataset, experiment.usable_cases(split, dataset, plans))
    if state.pairs_sha256 not in (None, pairs_digest(pairs)):
        raise UserError(f"{model} was trained on other pairs than fold {trained} has now: remove it, or rename it.")
    if study.minutes is None and state.epochs != plans.training.epochs:
        log.warning(
            "%s was trained for %d epochs, not the plans' %d: it is compared as it is.",
            model.name, state.epochs, plans.training.epochs,
        )  # fmt: skip
    return model


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


def _trained_fold(fold: str) -> str:
    return "all" if fold == TEST else fold


def _pairs(study: Study, fold: str, dataset: Dataset) -> tuple[Pair, ...]:
    """The labelled pairs that a fold is judged by. Raises UserError when there are none."""

    def labelled_of(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
        cases = [(pair, dataset.case(pair.fixed), dataset.case(pair.moving)) for pair in pairs]
        return tuple(pair for pair, fixed, moving in cases if fixed.label is not None and moving.label is not None)

    if fold == TEST:
        labelled = labelled_of(dataset.registration_test) or labelled_of(dataset.registration_val)
    else:
        file = pipeline.preprocessed_dataset(study.dataset) / pipeline.SPLITS_FILE
        folds = splits.read_splits(file)
        number = splits.parse_fold(fold, range(len(folds)))
        if number == "all":
            raise UserError("Fold all is validated on what it was trained on: choose test, or folds by number.")
        labelled = labelled_of(folds[number].validation_pairs)
    if not labelled:
        raise UserError(f"{dataset.name} has no labelled pairs to judge by in fold {fold}: choose other --folds.")
    return labelled


def write_pairs(path: Path, pairs: Sequence[Pair], dataset: Dataset) -> Path:
    """A table for ``llmreg_predict -i`` of a dataset's pairs, with their label maps and masks."""
    rows = []
    for pair in pairs:
        row: dict[str, Any] = {}
        for role, case in (("fixed", dataset.case(pair.fixed)), ("moving", dataset.case(pair.moving))):
            files = {role: case.image, f"{role}_label": case.label, f"{role}_mask": case.mask}
            # A relative path would be looked up beside the table.
            row |= {column: path.resolve() for column, path in files.items() if path is not None}
            row[f"{role}_modality"] = case.modality
        rows.append(row)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with written_whole(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(rows)
    return path


def peer_pairs(study: Study, fold: str, dataset: Dataset) -> list[PeerPair]:
    """A fold's validation pairs that are labelled, each with the pre-alignment that networks start from."""
    folder = pipeline.preprocessed_dataset(study.dataset)
    volumes = volumes_folder(folder, pipeline.find_plans(folder, study.plans))
    found = []
    for pair in _pairs(study, fold, dataset):
        fixed, moving = dataset.case(pair.fixed), dataset.case(pair.moving)
        assert fixed.label is not None
        assert moving.label is not None
        start = between(_placed(volumes, fixed.name), _placed(volumes, moving.name))
        found.append(
            PeerPair(f"{fixed.name}_{moving.name}", pair, fixed.image, moving.image, fixed.label, moving.label, start)
        )
    return found


def _placed(volumes: Path, case: str) -> CaseTransform:
    return CaseTransform.from_dict(read_case_record(volumes, case)["transform"])


def llm_morph_of(study: Study) -> LLMMorphSettings:
    """LLM-Morph's settings in the plans that methods start from. Raises UserError when these are a baseline's."""
    network = pipeline.find_plans(pipeline.preprocessed_dataset(study.dataset), study.plans).network
    if not isinstance(network, LLMMorphSettings):
        raise UserError(f"The plans '{study.plans}' are those of {network.name}: name plans of LLM-Morph with -p.")
    return network


def layers_of(study: Study) -> int:
    """How many layers the plans' language model has."""
    from llmreg.network.llm.families import build_config
    from llmreg.network.llm.sources import open_model

    model = open_model(llm_morph_of(study).llm.source)
    return int(build_config(model.config, model.family).num_hidden_layers)
