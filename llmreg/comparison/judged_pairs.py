"""The annotated pairs that methods are judged by, and digests of the files that fields and scores are made from."""

import logging
from collections.abc import Iterable

from llmreg.comparison.benchmark_settings import TEST, BenchmarkSettings
from llmreg.data import splits
from llmreg.data.case_images import sources_of
from llmreg.data.dataset import Case, Dataset, Pair
from llmreg.errors import BadArgument
from llmreg.files import file_digest, image_digest, json_digest
from llmreg.paths import preprocessed_dataset

log = logging.getLogger(__name__)


def judged_pairs(settings: BenchmarkSettings, fold: str, dataset: Dataset) -> tuple[Pair, ...]:
    """List the pairs with label maps or landmarks that a fold is judged by.

    Raises:
        BadArgument: the fold has none.
    """
    if fold == TEST:
        pairs = _annotated_pairs(dataset.registration_test, dataset) or _annotated_pairs(
            dataset.registration_val, dataset
        )
    else:
        folds = splits.read_splits(preprocessed_dataset(settings.dataset) / splits.SPLITS_FILE)
        number = splits.parse_fold(fold, range(len(folds)))
        if number == "all":
            raise BadArgument("folds", "Fold all is validated on what it was trained on: choose test, or numbers.")
        pairs = _annotated_pairs(folds[number].validation_pairs, dataset)
    if not pairs:
        raise BadArgument(
            "folds", f"{dataset.name} has no pairs with label maps or landmarks in fold {fold}: choose other folds."
        )
    return pairs


def all_judged_pairs(settings: BenchmarkSettings, dataset: Dataset) -> list[Pair]:
    """List the pairs of all folds; warn when validation pairs take the place of test pairs."""
    pairs: list[Pair] = []
    for fold in settings.folds:
        pairs_of_fold = judged_pairs(settings, fold, dataset)
        if fold == TEST and not set(pairs_of_fold) <= set(dataset.registration_test):
            log.warning("%s: no test pair is annotated: methods are judged by the validation pairs.", dataset.name)
        pairs += pairs_of_fold
    return pairs


def digest_registration_inputs(pairs: Iterable[Pair], dataset: Dataset) -> str:
    """Hash what fields are made from beside a model: the pairs, and the images and masks of their cases."""
    cases = _cases_of(pairs, dataset)
    files = [[str(file.absolute()), image_digest(file)] for case in cases for file in (case.image, case.mask) if file]
    return json_digest(files)


def digest_scoring_inputs(pairs: Iterable[Pair], dataset: Dataset) -> str:
    """Hash what scores are made from beside fields: the pairs, their cases' files and annotation, the labels."""
    cases = _cases_of(pairs, dataset)
    landmarks = [None if case.landmarks is None else file_digest(case.landmarks) for case in cases]
    return json_digest([[[case.name, sources_of(case)] for case in cases], landmarks, list(dataset.labels.items())])


def _annotated_pairs(pairs: Iterable[Pair], dataset: Dataset) -> tuple[Pair, ...]:
    """Keep the pairs in which both cases have a label map, or both have landmarks."""

    def is_annotated(pair: Pair) -> bool:
        cases = _cases_of([pair], dataset)
        return all(case.label is not None for case in cases) or all(case.landmarks is not None for case in cases)

    return tuple(filter(is_annotated, pairs))


def _cases_of(pairs: Iterable[Pair], dataset: Dataset) -> list[Case]:
    """The fixed and the moving case of each pair, in their order."""
    return [dataset.case(name) for pair in pairs for name in (pair.fixed, pair.moving)]
