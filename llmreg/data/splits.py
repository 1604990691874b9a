"""Who trains and who validates: K folds over subjects, never over images."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from llmreg.data.dataset import Case, Dataset, Pair, pairs_among
from llmreg.errors import UserError
from llmreg.files import read_json, write_json

log = logging.getLogger(__name__)

ALL = -1
"""The number of the split that trains on everything."""
FOLDS = 5
MOST_VALIDATION_PAIRS = 100


@dataclass(frozen=True)
class Split:
    """Case names of one fold. ``atlas`` cases take part on both sides and are listed on neither."""

    fold: int
    train: tuple[str, ...]
    validation: tuple[str, ...]
    atlas: tuple[str, ...]
    validation_pairs: tuple[Pair, ...]

    @property
    def training_cases(self) -> tuple[str, ...]:
        """Every case that training may use: ``train`` and ``atlas``."""
        return self.train + self.atlas

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: object) -> Split:
        """Raises pydantic.ValidationError when a key is missing or mistyped."""
        return _SPLIT.validate_python(content)


_SPLIT = TypeAdapter(Split)
_SPLITS = TypeAdapter(tuple[Split, ...])


def make_splits(dataset: Dataset, folds: int = FOLDS, seed: int = 12345) -> tuple[Split, ...]:
    """K folds over the subjects that may be trained on.

    A modality with fewer subjects than folds is shared by both sides as an atlas (not when the modalities of one
    subject are paired: a pair is then one subject). With fewer subjects than folds there are fewer folds.
    There are none when fewer than two subjects can be divided.
    """
    usable = _usable(dataset)
    modalities_of: dict[str, set[int]] = defaultdict(set)
    for case in usable:
        modalities_of[case.subject].add(case.modality)
    explicit = dataset.pairing == "explicit"
    roles = set(dataset.modalities) if explicit else {dataset.fixed_modality, dataset.moving_modality}
    counts = {m: sum(m in owned for owned in modalities_of.values()) for m in roles}
    shared: set[int] = set()
    if dataset.pairing == "intra_subject":
        enough = sum(roles <= owned for owned in modalities_of.values())
    else:
        enough = max(counts.values())
        shared = {m for m, count in counts.items() if 0 < count < min(folds, enough)}
    divided = {s: owned for s, owned in modalities_of.items() if not owned & shared}
    if len(divided) < 2:  # sharing would leave nobody to hold out
        shared, divided, enough = set(), modalities_of, min(enough, *counts.values())
    wanted, folds = folds, min(folds, enough, len(divided))
    if folds < 2:
        log.warning("%s has too few subjects to hold some out: only fold 'all' can be trained.", dataset.name)
        return ()
    if folds < wanted:
        log.info("%s has too few subjects for %d folds: %d are made.", dataset.name, wanted, folds)
    for modality in sorted(shared):
        log.info(
            "Modality %d (%s) has too few subjects (%d): its cases are shared by training and validation as an atlas.",
            modality,
            dataset.modalities[modality],
            counts[modality],
        )
    fold_of = _folds(divided, {case.subject for case in usable if case.label is not None}, folds, seed)
    splits = []
    for fold in range(folds):
        atlas = tuple(c.name for c in usable if c.modality in shared)
        validation = tuple(c.name for c in usable if fold_of.get(c.subject) == fold)
        train = tuple(c.name for c in usable if c.modality not in shared and fold_of.get(c.subject) != fold)
        pairs = _validation_pairs(dataset, train, validation, atlas, np.random.default_rng([seed, fold]))
        splits.append(Split(fold, train, validation, atlas, pairs))
    return tuple(splits)


def split_all(dataset: Dataset, seed: int = 12345) -> Split:
    """The split that trains and validates on every case (its validation says nothing about new subjects)."""
    names = tuple(case.name for case in _usable(dataset))
    pairs = _thinned(_evaluable(dataset, names), np.random.default_rng(seed))
    return Split(ALL, names, names, (), pairs)


def write_splits(path: Path, splits: Sequence[Split]) -> None:
    write_json(path, [split.to_dict() for split in splits])


def read_splits(path: Path) -> tuple[Split, ...]:
    """Raises UserError when the file is missing or does not hold splits."""
    content = read_json(path)
    try:
        return _SPLITS.validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{path}: '{where}' is wrong ({first['msg']}): restore the file or run llmreg_plan_and_preprocess again."
        ) from None


def check_splits(path: Path, splits: Sequence[Split], dataset: Dataset) -> None:
    """Whether splits, perhaps edited or of an earlier version of the dataset, are safe to use.

    Raises:
        UserError: a case is unknown, a subject is on both sides, or a held-out case would be trained on.
    """
    known = {case.name: case for case in dataset.cases}
    usable = {case.name for case in _usable(dataset)}
    remedy = f"mend {path}, or remove it and run llmreg_plan again"
    for split in splits:
        pairs = [name for pair in split.validation_pairs for name in (pair.fixed, pair.moving)]
        for name in (*split.train, *split.validation, *split.atlas, *pairs):
            if name not in known:
                raise UserError(f"{path} names the case {name}, which {dataset.name} lacks: {remedy}.")
        both = {known[name].subject for name in split.train} & {known[name].subject for name in split.validation}
        # Other images of an atlas subject may be trained on; a validated one may not.
        if both:
            raise UserError(f"{path} has subject {min(both)} on both sides of fold {split.fold}: {remedy}.")
        held_out = sorted(set(split.training_cases) - usable)
        if held_out:
            raise UserError(f"{path} would train on {held_out[0]}, whose subject dataset.json holds out: {remedy}.")
    used = {name for split in splits for name in (*split.training_cases, *split.validation)}
    unused = sorted(usable - used) if splits else []
    if unused:
        log.warning("%s does not use %d cases, such as %s: %s to include them.", path, len(unused), unused[0], remedy)


def fold_name(text: str) -> str:
    """The bare name, ``0`` or ``all``, of ``0``, ``fold0``, ``fold_0`` or ``fold_all``, whether or not there is one."""
    return text.removeprefix("fold").removeprefix("_")


def parse_fold(text: str | int, available: Iterable[int]) -> int | Literal["all"]:
    """``0``, ``fold0``, ``fold_0`` or ``all``.

    Raises:
        UserError: for anything else, and for a fold that is not among ``available``.
    """
    known = sorted(available)
    if str(text) in ("all", "fold_all"):
        return "all"
    match = re.fullmatch(r"(?:fold_?)?([0-9]+)", str(text))
    if match is None or int(match[1]) not in known:
        listed = f"{', '.join(map(str, known))} or all" if known else "all, there is no other"
        raise UserError(f"There is no fold '{text}': choose {listed}.")
    return int(match[1])


def _usable(dataset: Dataset) -> tuple[Case, ...]:
    """The cases that are not held out, by name."""
    usable = tuple(sorted((c for c in dataset.cases if c.name not in dataset.held_out), key=lambda case: case.name))
    for modality in {dataset.fixed_modality, dataset.moving_modality}:
        if not any(case.modality == modality for case in usable):
            raise UserError(
                f"{dataset.name}: every subject of modality {modality} ({dataset.modalities[modality]}) is in "
                "registration_val or registration_test: list others under 'training' in dataset.json."
            )
    return usable


def _folds(modalities_of: dict[str, set[int]], labelled: set[str], folds: int, seed: int) -> dict[str, int]:
    """Subject -> fold; subjects with the same modalities, and labels or none, are divided evenly."""
    # Inside: every worker imports this module, and sklearn takes a second.
    from sklearn.model_selection import KFold

    groups: dict[tuple[bool, tuple[int, ...]], list[str]] = defaultdict(list)
    for subject, owned in sorted(modalities_of.items()):
        groups[subject in labelled, tuple(sorted(owned))].append(subject)
    fold_of: dict[str, int] = {}
    for _, subjects in sorted(groups.items()):
        if len(subjects) >= folds:
            parts = KFold(folds, shuffle=True, random_state=seed).split(subjects)
            fold_of |= {subjects[i]: fold for fold, (_, held) in enumerate(parts) for i in held}
            continue
        order = np.random.default_rng(seed).permutation(len(subjects))
        for i in order:
            sizes = [sum(f == fold for f in fold_of.values()) for fold in range(folds)]
            fold_of[subjects[i]] = sizes.index(min(sizes))
    return fold_of


def _evaluable(dataset: Dataset, names: Iterable[str]) -> list[Pair]:
    """The pairs among these cases that labels can judge, if the dataset has labels."""
    if any(case.label is not None for case in dataset.cases):
        names = [name for name in names if dataset.case(name).label is not None]
    return pairs_among(dataset, names)


def _validation_pairs(
    dataset: Dataset, train: Sequence[str], validation: Sequence[str], atlas: Sequence[str], rng: np.random.Generator
) -> tuple[Pair, ...]:
    """Pairs among validation and atlas cases that hold a validation case."""
    held = set(validation)
    among = _evaluable(dataset, [*validation, *atlas])
    pairs = [pair for pair in among if pair.fixed in held or pair.moving in held]
    if not pairs:
        # A fold of one subject has no pair of different subjects.
        everyone = _evaluable(dataset, [*train, *validation, *atlas])
        pairs = [pair for pair in everyone if pair.fixed in held or pair.moving in held] or among
        log.info("The cases %s make no validation pair: training cases are their partners.", ", ".join(validation))
    return _thinned(pairs, rng)


def _thinned(pairs: Sequence[Pair], rng: np.random.Generator) -> tuple[Pair, ...]:
    if len(pairs) <= MOST_VALIDATION_PAIRS:
        return tuple(pairs)
    kept = np.sort(rng.choice(len(pairs), MOST_VALIDATION_PAIRS, replace=False))
    return tuple(pairs[i] for i in kept)
