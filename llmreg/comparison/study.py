"""What methods are compared on: a dataset, the validation pairs of its folds, and the time that all are given."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from llmreg import paths
from llmreg.data import splits
from llmreg.data.dataset import Case, Dataset, Pair, load_dataset
from llmreg.data.provenance import sources_of
from llmreg.errors import UserError
from llmreg.files import file_digest, image_digest, json_digest
from llmreg.networks.config import LLMMorphSettings
from llmreg.preprocessing import dataset_steps as pipeline

log = logging.getLogger(__name__)

TEST = "test"


@dataclass(frozen=True)
class Study:
    """What is compared on.

    Attributes:
        dataset: id or whole name.
        folds: whose validation pairs count; ``test`` for the dataset's test pairs (its validation pairs where these are
            not annotated), predicted by a training on all else.
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


def dataset_of(study: Study) -> Dataset:
    return load_dataset(paths.find_dataset_folder(study.dataset, paths.raw_folder()))


def judged_pairs(study: Study, fold: str, dataset: Dataset) -> tuple[Pair, ...]:
    """The pairs with label maps or landmarks that a fold is judged by. Raises UserError when there are none."""

    def annotated_of(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
        cases = [(pair, (dataset.case(pair.fixed), dataset.case(pair.moving))) for pair in pairs]
        return tuple(
            pair
            for pair, both in cases
            if all(case.label is not None for case in both) or all(case.keypoints is not None for case in both)
        )

    if fold == TEST:
        judged = annotated_of(dataset.registration_test) or annotated_of(dataset.registration_val)
    else:
        file = pipeline.preprocessed_dataset(study.dataset) / pipeline.SPLITS_FILE
        folds = splits.read_splits(file)
        number = splits.parse_fold(fold, range(len(folds)))
        if number == "all":
            raise UserError("Fold all is validated on what it was trained on: choose test, or folds by number.")
        judged = annotated_of(folds[number].validation_pairs)
    if not judged:
        raise UserError(
            f"{dataset.name} has no pairs with label maps or landmarks to judge by in fold {fold}: choose other "
            "--folds."
        )
    return judged


def all_judged_pairs(study: Study, dataset: Dataset) -> list[Pair]:
    """Those of all folds, before hours are spent on them; warns when they are not of the cases that were meant."""
    found: list[Pair] = []
    for fold in study.folds:
        judged = judged_pairs(study, fold, dataset)
        if fold == TEST and not set(judged) <= set(dataset.registration_test):
            log.warning("%s: no test pair is annotated: methods are judged by the validation pairs.", dataset.name)
        found += judged
    return found


def registered_from(pairs: Iterable[Pair], dataset: Dataset) -> str:
    """A hash of what fields are made from beside a model: the pairs, and the images and masks of their cases."""
    cases = _cases(pairs, dataset)
    files = [[str(file.absolute()), image_digest(file)] for case in cases for file in (case.image, case.mask) if file]
    return json_digest(files)


def judged_by(pairs: Iterable[Pair], dataset: Dataset) -> str:
    """A hash of what scores are made from beside fields: the pairs, their cases' files and annotation, the labels."""
    cases = _cases(pairs, dataset)
    points = [None if case.keypoints is None else file_digest(case.keypoints) for case in cases]
    return json_digest([[[case.name, sources_of(case)] for case in cases], points, list(dataset.labels.items())])


def _cases(pairs: Iterable[Pair], dataset: Dataset) -> list[Case]:
    """The fixed and the moving case of each pair, in their order."""
    return [dataset.case(name) for pair in pairs for name in (pair.fixed, pair.moving)]


def identity(study: Study) -> dict[str, Any]:
    """What shapes methods, and must be the same for all of a comparison, as JSON."""
    plans = pipeline.find_plans(pipeline.preprocessed_dataset(study.dataset), study.plans)
    configuration = study.configuration or plans.default_configuration
    about = {"dataset": plans.dataset_name, "plans": study.plans, "digest": plans.digest()}
    return about | {"configuration": configuration, "minutes": study.minutes}


def llm_morph_of(study: Study) -> LLMMorphSettings:
    """LLM-Morph's settings in the plans that methods start from. Raises UserError when these are a baseline's."""
    network = pipeline.find_plans(pipeline.preprocessed_dataset(study.dataset), study.plans).network
    if not isinstance(network, LLMMorphSettings):
        raise UserError(f"The plans '{study.plans}' are those of {network.name}: name plans of LLM-Morph with -p.")
    return network


def layers_of(study: Study) -> int:
    """How many layers the plans' language model has."""
    from llmreg.networks.language_models.families import build_config
    from llmreg.networks.language_models.sources import open_model

    model = open_model(llm_morph_of(study).llm.source)
    return int(build_config(model.config, model.family).num_hidden_layers)
