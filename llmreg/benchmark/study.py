"""A comparison of methods on a dataset's validation pairs: trained where they are not, predicted, scored, in tables.

Each step is a command in a process of its own, so that its memory is its own and its crash a row. What is done is
kept: called again, the comparison goes on where it stopped.
"""

from __future__ import annotations

import csv
import logging
import shutil
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
from llmreg.benchmark.peers import PeerPair, register_pairs
from llmreg.benchmark.scored import BENCHMARK_FILE, METRICS_FILE, per_pair
from llmreg.dataset import Dataset, Pair, load_dataset
from llmreg.errors import UserError
from llmreg.evaluation.evaluate import evaluate_folder
from llmreg.files import read_json, write_json, written_whole
from llmreg.geometry.field import chained
from llmreg.inference.models import model_in
from llmreg.inference.pairs import PAIRS_FILE
from llmreg.inference.predict import PREDICT_FILE
from llmreg.network.config import LLMMorphSettings
from llmreg.preprocessing import pipeline, splits
from llmreg.preprocessing.prealignment import CaseTransform
from llmreg.preprocessing.preprocess import read_case_record, volumes_folder
from llmreg.training import experiment
from llmreg.training.checkpoint import path_of

log = logging.getLogger(__name__)

# An epoch, where the length of training is a time: short, so that whole ones fill it well.
STEPS_PER_EPOCH = 50


@dataclass(frozen=True)
class Study:
    """What is compared on.

    Attributes:
        dataset: id or whole name.
        folds: whose validation pairs count.
        plans: name of the plans that all learned methods start from.
        configuration: ``full`` or ``half``; the plans' when None.
        minutes: of training for each learned method and fold; the plans' number of epochs when None.
        peer_seconds: how long another program may take for a pair.
        device: where to train and predict.
        workers: processes that load and augment.
    """

    dataset: str
    folds: tuple[int, ...] = (0,)
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


def _of_fold(study: Study, method: Method, fold: int, folder: Path) -> pd.DataFrame:
    dataset = load_dataset(paths.find_dataset_folder(study.dataset, paths.raw_folder()))
    try:
        if method.kind == "learned":
            _predict(study, method, fold, folder, dataset)
        else:
            register_pairs(method.name, _peer_pairs(study, fold, dataset), folder, study.peer_seconds)
        if not (folder / METRICS_FILE).exists():
            evaluate_folder(folder, dataset.folder)
    except UserError as error:
        raise Failed(str(error)) from error
    return per_pair(folder)


def _predict(study: Study, method: Method, fold: int, folder: Path, dataset: Dataset) -> None:
    """Train where that is not done, and predict the fold's validation pairs."""
    model = _trained(study, method, fold)
    checkpoint = path_of(model / f"fold_{fold}", "final")
    about = {"checkpoint": [checkpoint.stat().st_size, checkpoint.stat().st_mtime_ns]}
    done = folder / BENCHMARK_FILE
    if done.exists() and read_json(done).items() >= about.items():
        return
    # Of another training, or not finished.
    shutil.rmtree(folder, ignore_errors=True)
    _write_pairs(folder / PAIRS_FILE, _pairs(study, fold), dataset)
    began = time.monotonic()
    command = ["predict", "-i", str(folder / PAIRS_FILE), "-o", str(folder), "-m", str(model), "-f", str(fold)]
    _run([*command, "--save", "field", "warped", "prealignment", *_on(study)])
    took = (time.monotonic() - began) / len(read_json(folder / PREDICT_FILE)["pairs"])
    write_json(done, about | {"seconds": round(took, 2)})


def _trained(study: Study, method: Method, fold: int) -> Path:
    """The folder of the method's model, which is trained on the fold if it is not."""
    changes = list(method.changes)
    name = "" if study.plans == "default" else study.plans
    if study.minutes is not None:
        changes.append(f"training.steps_per_epoch={STEPS_PER_EPOCH}")
        name = f"{name}_{study.minutes:g}min".strip("_")
    if method.changes:
        name = f"{name}_{method.name}".strip("_")
    command = ["train", study.dataset, f"fold{fold}", "-p", study.plans, "--continue", "--workers", str(study.workers)]
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
    model = experiment.model_folder(preprocessed.name, plans, study.configuration or plans.default_configuration)
    if not path_of(model / f"fold_{fold}", "final").exists():
        _run(command)
    model_in(model, [str(fold)])
    return model


def _run(arguments: Sequence[str]) -> None:
    """A command of this package, whose progress is seen. Raises UserError when it fails."""
    command, *rest = arguments
    done = subprocess.run([sys.executable, "-m", f"llmreg.commands.{command}", *rest], stdin=subprocess.DEVNULL)
    if done.returncode in (130, 143):
        raise KeyboardInterrupt
    if done.returncode:
        raise UserError(f"llmreg_{command} ended with exit code {done.returncode}: see what it said above.")


def _on(study: Study) -> list[str]:
    return [] if study.device is None else ["--device", study.device]


def _pairs(study: Study, fold: int) -> tuple[Pair, ...]:
    folder = pipeline.preprocessed_dataset(study.dataset)
    folds = splits.read_splits(folder / pipeline.SPLITS_FILE)
    if fold not in range(len(folds)):
        raise UserError(f"There is no fold {fold}: choose among 0 to {len(folds) - 1}.")
    return tuple(folds[fold].validation_pairs)


def _write_pairs(path: Path, pairs: Sequence[Pair], dataset: Dataset) -> None:
    rows = []
    for pair in pairs:
        row: dict[str, Any] = {}
        for role, case in (("fixed", dataset.case(pair.fixed)), ("moving", dataset.case(pair.moving))):
            row |= {role: case.image, f"{role}_modality": case.modality, f"{role}_label": case.label}
            row |= {f"{role}_mask": case.mask} if case.mask is not None else {}
        rows.append(row)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with written_whole(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(rows)


def _peer_pairs(study: Study, fold: int, dataset: Dataset) -> list[PeerPair]:
    folder = pipeline.preprocessed_dataset(study.dataset)
    volumes = volumes_folder(folder, pipeline.find_plans(folder, study.plans))
    found = []
    for pair in _pairs(study, fold):
        fixed, moving = dataset.case(pair.fixed), dataset.case(pair.moving)
        if fixed.label is None or moving.label is None:
            continue
        there, back = (_placed(volumes, case.name).to_sitk() for case in (moving, fixed))
        start = CaseTransform.from_sitk(chained(back.GetInverse(), there), "prealignment").to_sitk()
        found.append(
            PeerPair(
                f"{fixed.name}_{moving.name}", fixed.name, moving.name, fixed.image, moving.image,
                fixed.label, moving.label, start,
            )
        )  # fmt: skip
    return found


def _placed(volumes: Path, case: str) -> CaseTransform:
    return CaseTransform(**read_case_record(volumes, case)["transform"])


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
