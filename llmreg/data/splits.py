"""Folds: subjects, and never images, are divided into training and validation."""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from llmreg.data.dataset import Case, Dataset, Pair, draw_pairs, pairs_among
from llmreg.errors import BadDataset, UnknownName, UnreadableFile
from llmreg.files import read_json, write_json
from llmreg.paths import fold_name
from llmreg.settings import locate_problem

log = logging.getLogger(__name__)

# The number of the split that trains on everything.
ALL = -1
SPLITS_FILE = "splits.json"
MOST_VALIDATION_PAIRS = 100


@dataclass(frozen=True)
class Split:
    """The cases of one fold by name.

    Attributes:
        fold: its number, or :data:`ALL`.
        train: cases that are only trained on.
        validation: cases that are only validated with.
        atlas: cases that take part on both sides, and are listed in neither ``train`` nor ``validation``.
        validation_pairs: the pairs that are validated.
    """

    fold: int
    train: tuple[str, ...]
    validation: tuple[str, ...]
    atlas: tuple[str, ...]
    validation_pairs: tuple[Pair, ...]

    @property
    def training_cases(self) -> tuple[str, ...]:
        """Every case that training may use: ``train`` and ``atlas``."""
        return self.train + self.atlas


def make_splits(dataset: Dataset, folds: int = 5, seed: int = 12345) -> tuple[Split, ...]:
    """Divide the subjects that may be trained on into folds.

    A modality with fewer subjects than folds is shared by both sides as an atlas, except where the two modalities of
    one subject form the pairs. With fewer subjects than folds there are fewer folds, and none when fewer than two
    subjects can be divided.

    Args:
        dataset: the dataset.
        folds: their number.
        seed: of the random division.
    """
    usable = _usable_cases(dataset)
    modalities_of: dict[str, set[int]] = defaultdict(set)
    for case in usable:
        modalities_of[case.subject].add(case.modality)
    roles = (
        set(dataset.modalities) if dataset.pairing == "explicit" else {dataset.fixed_modality, dataset.moving_modality}
    )
    counts = {m: sum(m in modalities for modalities in modalities_of.values()) for m in roles}
    shared: set[int] = set()
    if dataset.pairing == "intra_subject":
        most = sum(roles <= modalities for modalities in modalities_of.values())
    else:
        most = max(counts.values())
        shared = {m for m, count in counts.items() if 0 < count < min(folds, most)}
    divided = {s: modalities for s, modalities in modalities_of.items() if not modalities & shared}
    if len(divided) < 2:
        # An atlas would leave no subject to hold out.
        shared, divided, most = set(), modalities_of, min(most, *counts.values())
    fold_count = min(folds, most, len(divided))
    if fold_count < 2:
        log.warning("%s has too few subjects to hold some out: only fold 'all' can be trained.", dataset.name)
        return ()
    if fold_count < folds:
        log.info("%s has too few subjects for %d folds: %d are made.", dataset.name, folds, fold_count)
    for modality in sorted(shared):
        log.info(
            "Modality %d (%s) has too few subjects (%d): its cases are shared by training and validation as an atlas.",
            modality,
            dataset.modalities[modality],
            counts[modality],
        )
    fold_of = _assign_folds(divided, {case.subject for case in usable if case.label is not None}, fold_count, seed)
    atlas = tuple(c.name for c in usable if c.modality in shared)
    splits = []
    for fold in range(fold_count):
        validation = tuple(c.name for c in usable if fold_of.get(c.subject) == fold)
        train = tuple(c.name for c in usable if c.modality not in shared and fold_of.get(c.subject) != fold)
        pairs = _list_validation_pairs(dataset, train, validation, atlas)
        splits.append(Split(fold, train, validation, atlas, draw_pairs(pairs, MOST_VALIDATION_PAIRS, [seed, fold])))
    return tuple(splits)


def split_all(dataset: Dataset, seed: int = 12345) -> Split:
    """Make the split that trains and validates on every case; its validation tells nothing about new subjects."""
    names = tuple(case.name for case in _usable_cases(dataset))
    pairs = draw_pairs(_list_evaluable(dataset, names), MOST_VALIDATION_PAIRS, seed)
    return Split(ALL, names, names, (), pairs)


def write_splits(path: Path, splits: Sequence[Split]) -> None:
    """Write the file of splits."""
    write_json(path, [asdict(split) for split in splits])


def read_splits(path: Path) -> tuple[Split, ...]:
    """Read the file of splits. Raises MissingFile when it is missing, and UnreadableFile when it holds no splits."""
    try:
        return TypeAdapter(tuple[Split, ...]).validate_python(read_json(path))
    except ValidationError as error:
        key, problem = locate_problem(error)
        raise UnreadableFile(
            path, f"holds a wrong value under '{key}' ({problem})", "restore it, or remove it and plan again"
        ) from None


def check_splits(path: Path, splits: Sequence[Split], dataset: Dataset) -> None:
    """Check splits, which may have been edited or be of an earlier version of the dataset.

    Raises:
        UnreadableFile: a case is unknown, a subject is on both sides, or a held-out case would be trained on.
    """
    remedy = "correct it, or remove it and plan again"
    usable = {case.name for case in _usable_cases(dataset)}
    for split in splits:
        pairs = [name for pair in split.validation_pairs for name in (pair.fixed, pair.moving)]
        for name in (*split.train, *split.validation, *split.atlas, *pairs):
            if name not in dataset.by_name:
                raise UnreadableFile(path, f"names the case {name}, which {dataset.name} lacks", remedy)
        shared_subjects = {dataset.case(n).subject for n in split.train} & {
            dataset.case(n).subject for n in split.validation
        }
        # Only an atlas subject may have images on both sides.
        if shared_subjects:
            raise UnreadableFile(path, f"has subject {min(shared_subjects)} on both sides of fold {split.fold}", remedy)
        held_out = sorted(set(split.training_cases) - usable)
        if held_out:
            raise UnreadableFile(path, f"would train on {held_out[0]}, whose subject dataset.json holds out", remedy)
    unused = sorted(usable - {name for split in splits for name in (*split.training_cases, *split.validation)})
    if splits and unused:
        log.warning(
            "%s does not use %d cases, such as %s: to include them, remove it and plan again.",
            path,
            len(unused),
            unused[0],
        )


def parse_fold(text: str | int, available: Iterable[int]) -> int | Literal["all"]:
    """Read the name of a fold: ``0``, ``fold0``, ``fold_0``, ``fold_all`` or ``all``.

    Raises:
        UnknownName: it is anything else, or a fold that is not among ``available``.
    """
    numbers, name = sorted(available), fold_name(str(text))
    if name == "all":
        return "all"
    if not re.fullmatch("[0-9]+", name) or int(name) not in numbers:
        raise UnknownName("fold", str(text), (*map(str, numbers), "all"))
    return int(name)


def _usable_cases(dataset: Dataset) -> list[Case]:
    usable = sorted(dataset.trainable_cases, key=lambda case: case.name)
    for modality in {dataset.fixed_modality, dataset.moving_modality}:
        if not any(case.modality == modality for case in usable):
            raise BadDataset(
                dataset.folder,
                "",
                f"has no subject of modality {modality} ({dataset.modalities[modality]}) that is neither in "
                "registration_val nor in registration_test",
                "list others under 'training' in dataset.json",
            )
    return usable


def _assign_folds(modalities_of: dict[str, set[int]], labelled: set[str], folds: int, seed: int) -> dict[str, int]:
    """Assign subjects to folds; those that have the same modalities, and are alike with or without labels, evenly."""
    # sklearn is imported here, since it takes a second, and every worker imports this module.
    from sklearn.model_selection import KFold

    groups: dict[tuple[bool, tuple[int, ...]], list[str]] = defaultdict(list)
    for subject, modalities in sorted(modalities_of.items()):
        groups[subject in labelled, tuple(sorted(modalities))].append(subject)
    fold_of: dict[str, int] = {}
    for _, subjects in sorted(groups.items()):
        if len(subjects) >= folds:
            parts = KFold(folds, shuffle=True, random_state=seed).split(subjects)
            fold_of |= {subjects[i]: fold for fold, (_, validation) in enumerate(parts) for i in validation}
        else:
            for i in np.random.default_rng(seed).permutation(len(subjects)):
                fold_of[subjects[i]] = min(range(folds), key=list(fold_of.values()).count)
    return fold_of


def _list_evaluable(dataset: Dataset, names: Iterable[str]) -> list[Pair]:
    """List the pairs among these cases; where the dataset has labels, only labelled pairs."""
    if any(case.label is not None for case in dataset.cases):
        names = [name for name in names if dataset.case(name).label is not None]
    return pairs_among(dataset, names)


def _list_validation_pairs(
    dataset: Dataset, train: Sequence[str], validation: Sequence[str], atlas: Sequence[str]
) -> list[Pair]:
    """List the pairs among validation and atlas cases that contain a validation case."""
    held_out, evaluable = set(validation), _list_evaluable(dataset, [*validation, *atlas])
    pairs = [pair for pair in evaluable if pair.fixed in held_out or pair.moving in held_out]
    if not pairs:
        # The validation cases of a single subject form no pair of different subjects.
        candidates = _list_evaluable(dataset, [*train, *validation, *atlas])
        pairs = [pair for pair in candidates if pair.fixed in held_out or pair.moving in held_out] or evaluable
        log.info("The cases %s form no validation pair: they are paired with training cases.", ", ".join(validation))
    return pairs
