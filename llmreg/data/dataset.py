"""A raw dataset: Learn2Reg's ``dataset.json`` inside nnU-Net's folders, read without opening any image.

``documentation/raw-data.md`` describes the format for users.
"""

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llmreg.data.dataset_json import (
    Direction,
    RawCase,
    RawDataset,
    RawPair,
    description_file,
    join,
    label_table,
    parse_id,
    validate,
)
from llmreg.errors import BadDataset
from llmreg.files import json_digest, read_json
from llmreg.images.formats import DEFAULT_ENDING, image_endings, strip_ending

log = logging.getLogger(__name__)

Pairing = Literal["intra_subject", "unpaired", "inter_subject", "explicit"]
_PAIRINGS: dict[str, Pairing] = {
    "intra_subject": "intra_subject",
    "paired": "intra_subject",
    "unpaired": "unpaired",
    "inter_subject": "inter_subject",
    "explicit": "explicit",
}


@dataclass(frozen=True)
class Case:
    """One image and the files that belong to it.

    Attributes:
        name: the image's file name without its ending.
        subject: the subject's four digits.
        modality: the modality's number.
        image: the image's file.
        label: its label map.
        mask: its foreground.
        landmarks: its landmarks.
        annotated_labels: ids of the structures that were looked for; None when these are all of the label table.
    """

    name: str
    subject: str
    modality: int
    image: Path
    label: Path | None = None
    mask: Path | None = None
    landmarks: Path | None = None
    annotated_labels: tuple[int, ...] | None = None

    def annotated_structures(self, label_table: Collection[int]) -> set[int]:
        """The ids of the structures that were looked for, given those of the dataset's label table."""
        return set(label_table if self.annotated_labels is None else self.annotated_labels)


@dataclass(frozen=True)
class Pair:
    """Names of the fixed case and of the moving case, which is warped onto it."""

    fixed: str
    moving: str


@dataclass(frozen=True)
class Dataset:
    """The content of ``dataset.json``.

    Attributes:
        name: the folder's name.
        folder: the raw dataset.
        modalities: their names by number.
        labels: names of the structures by label id, without background.
        fixed_modality: the number of the fixed images' modality.
        moving_modality: that of the moving images.
        pairing: the rule by which cases form pairs.
        cases: all cases, by name.
        explicit_pairs: the pairs to train on, where the pairing is ``explicit``.
        registration_val: pairs of held-out subjects for validation.
        registration_test: the same for testing.
        held_out: names of the cases that must never be trained on.
    """

    name: str
    folder: Path
    modalities: dict[int, str]
    labels: dict[int, str]
    fixed_modality: int
    moving_modality: int
    pairing: Pairing
    cases: tuple[Case, ...]
    explicit_pairs: tuple[Pair, ...] = ()
    registration_val: tuple[Pair, ...] = ()
    registration_test: tuple[Pair, ...] = ()
    held_out: frozenset[str] = frozenset()

    @cached_property
    def by_name(self) -> dict[str, Case]:
        """The cases by their names."""
        return {case.name: case for case in self.cases}

    def case(self, name: str) -> Case:
        """The case of a name. Raises KeyError when there is none."""
        return self.by_name[name]

    @property
    def trainable_cases(self) -> list[Case]:
        """The cases that may be trained on, which are those that are not held out."""
        return [case for case in self.cases if case.name not in self.held_out]

    def of_modality(self, modality: int) -> tuple[Case, ...]:
        """The cases of a modality, by name."""
        return tuple(case for case in self.cases if case.modality == modality)


def load_dataset(folder: Path) -> Dataset:
    """Read ``dataset.json`` (or the only ``*_dataset.json``) of a raw dataset's folder.

    Raises:
        MissingFile: there is no such folder, or no description in it.
        UnreadableFile: the description is no JSON.
        BadDataset: an entry has another type, a file is misnamed or missing, or a modality has no cases.
    """
    if not re.fullmatch(r"Dataset\d{3}_.+", folder.name):
        raise BadDataset(folder, "", "is not named like Dataset001_Name", "rename the folder")
    file = description_file(folder)
    raw = validate(RawDataset, read_json(file), file)
    modalities = dict(sorted(raw.modality.items()))
    # Where the file names no direction, the first modality is fixed, and the second one moving; a single one is both.
    fixed, moving, *_ = [*modalities, *modalities]
    direction = raw.registration_direction or Direction(fixed=fixed, moving=moving)
    for role, modality in direction:
        if modality not in modalities:
            raise BadDataset(
                file,
                f"registration_direction.{role}",
                f"is {modality}, but 'modality' only lists {join(modalities)}",
                "name one of these",
            )
    reader = _CaseReader(folder, file, modalities, label_table(raw.labels, file), direction)
    reader.add_training(raw.training)
    paired = reader.read_pairs(raw.training_paired_images, "training_paired_images")
    explicit = reader.read_pairs(raw.pairings, "pairings") if isinstance(raw.pairings, list) else []
    validation = reader.read_pairs(raw.registration_val, "registration_val", may_be_missing=True)
    test = reader.read_pairs(raw.registration_test, "registration_test", may_be_missing=True)
    cases = tuple(case for _, case in sorted(reader.cases.items()))
    # All images of a tested subject are held out: the other ones show the same anatomy.
    tested = {reader.cases[name].subject for pair in (*validation, *test) for name in (pair.fixed, pair.moving)}
    held_out = frozenset(case.name for case in cases if case.subject in tested)
    if held_out:
        log.info(
            "%s: %d cases of the subjects in registration_val and registration_test are kept out of training.",
            folder.name,
            len(held_out),
        )
    for modality, contrast in modalities.items():
        if not any(case.modality == modality for case in cases):
            raise BadDataset(
                file,
                f"modality.{modality}",
                f"({contrast}) has no cases",
                "list its images under 'training', or take it out",
            )
    pairing = _choose_pairing(raw.pairings, paired, reader.cases, direction, file)
    return Dataset(
        name=folder.name,
        folder=folder,
        modalities=modalities,
        labels=reader.labels,
        fixed_modality=direction.fixed,
        moving_modality=direction.moving,
        pairing=pairing,
        cases=cases,
        explicit_pairs=tuple(explicit or paired) if pairing == "explicit" else (),
        registration_val=tuple(validation),
        registration_test=tuple(test),
        held_out=held_out,
    )


def pairs_digest(pairs: Iterable[Pair]) -> str:
    """A hash of pairs in their order."""
    return json_digest([[pair.fixed, pair.moving] for pair in pairs])


def draw_pairs(pairs: Sequence[Pair], most: int, seed: int | list[int]) -> tuple[Pair, ...]:
    """Draw ``most`` of some pairs at random, in their order; all of them where there are no more."""
    drawn = np.random.default_rng(seed).choice(len(pairs), min(len(pairs), most), replace=False)
    return tuple(pairs[i] for i in sorted(drawn))


def pairs_among(dataset: Dataset, case_names: Iterable[str]) -> list[Pair]:
    """List all pairs that some cases form under the dataset's pairing.

    Their order is that of ``explicit_pairs``, or else by the names of the fixed and the moving case. No case is paired
    with itself.

    Raises:
        KeyError: when the dataset lacks one of the names.
    """
    cases = [dataset.case(name) for name in sorted(set(case_names))]
    if dataset.pairing == "explicit":
        names = {case.name for case in cases}
        return [pair for pair in dataset.explicit_pairs if pair.fixed in names and pair.moving in names]
    # Whether the two cases may, or must not, be of one subject.
    allowed = {"intra_subject": {True}, "inter_subject": {False}, "unpaired": {True, False}}[dataset.pairing]
    return [
        Pair(fixed.name, moving.name)
        for fixed in cases
        if fixed.modality == dataset.fixed_modality
        for moving in cases
        if moving.modality == dataset.moving_modality
        if fixed.name != moving.name and (fixed.subject == moving.subject) in allowed
    ]


def _choose_pairing(
    raw: object, paired: list[Pair], cases: Mapping[str, Case], direction: Direction, file: Path
) -> Pairing:
    # Learn2Reg's word "hybrid", for some paired and some unpaired cases, does not tell which pairs to train on.
    is_open = raw in (None, "hybrid")
    if isinstance(raw, list) or (is_open and paired):
        return "explicit"
    if is_open:
        if direction.fixed == direction.moving:
            return "inter_subject"
        fixed, moving = (
            {case.subject for case in cases.values() if case.modality == modality}
            for modality in (direction.fixed, direction.moving)
        )
        return "intra_subject" if fixed & moving else "unpaired"
    if not isinstance(raw, str) or raw not in _PAIRINGS:
        raise BadDataset(
            file, "pairings", f"is {raw!r}", f"write one of {join(_PAIRINGS)}, or a list of {{fixed, moving}}"
        )
    pairing = _PAIRINGS[raw]
    # Learn2Reg lists pairs even where they are only those of each subject.
    implied = all(
        fixed.subject == moving.subject and (fixed.modality, moving.modality) == (direction.fixed, direction.moving)
        for fixed, moving in ((cases[pair.fixed], cases[pair.moving]) for pair in paired)
    )
    if pairing == "intra_subject" and paired and (not implied or direction.fixed == direction.moving):
        return "explicit"
    if pairing == "explicit" and not paired:
        raise BadDataset(
            file, "pairings", "is 'explicit', but 'training_paired_images' is empty", "list the pairs there"
        )
    if pairing == "intra_subject" and direction.fixed == direction.moving:
        raise BadDataset(
            file,
            "pairings",
            f"is '{raw}', but fixed and moving are the same modality",
            "write 'inter_subject', or a list of the pairs",
        )
    return pairing


class _CaseReader:
    """Collects the cases that the entries of ``dataset.json`` name, each of them once."""

    def __init__(
        self, folder: Path, file: Path, modalities: Mapping[int, str], labels: dict[int, str], direction: Direction
    ) -> None:
        self.folder, self.file, self.direction = folder, file, direction
        self.modalities, self.labels = modalities, labels
        self.cases: dict[str, Case] = {}

    def add_training(self, training: Mapping[str, list[RawCase]]) -> None:
        """Add the cases of ``training`` by the keys of their modalities; the key is empty for a list of all."""
        for key, entries in training.items():
            listed = f"training.{key}".rstrip(".")
            if key and parse_id(key) not in self.modalities:
                raise BadDataset(
                    self.file,
                    listed,
                    f"is not among the modalities {join(self.modalities)}",
                    "add it to 'modality' or correct the key",
                )
            for position, entry in enumerate(entries):
                case = self._add(entry, f"{listed}.{position}")
                if key and case.modality != parse_id(key):
                    raise BadDataset(
                        self.file,
                        f"{listed}.{position}.image",
                        f"is {entry.image}, an image of modality {case.modality}",
                        f"move it to 'training.{case.modality}'",
                    )
        if not self.cases:
            raise BadDataset(self.file, "training", "is empty", "list the training images there")

    def read_pairs(self, entries: list[Any] | None, key: str, *, may_be_missing: bool = False) -> list[Pair]:
        """Read pairs of cases, and add the cases that ``training`` does not list."""
        pairs = []
        for position, entry in enumerate(entries or []):
            where = f"{key}.{position}"
            if isinstance(entry, list) and len(entry) == 2:
                entry = {"fixed": entry[0], "moving": entry[1]}
            elif isinstance(entry, dict) and "fixed" not in entry and str(self.direction.fixed) in entry:
                entry = {role: entry.get(str(modality)) for role, modality in self.direction}
            names = validate(RawPair, entry, self.file, where)
            files = {role: f if f.endswith(image_endings()) else f + DEFAULT_ENDING for role, f in names}
            paths = {role: file if "/" in file else f"imagesTr/{file}" for role, file in files.items()}
            absent = [path for path in paths.values() if not (self.folder / path).is_file()]
            if may_be_missing and absent:
                # Organisers of a challenge keep some of these images secret.
                log.info("%s: '%s' is left out, because %s does not exist.", self.file, where, absent[0])
                continue
            fixed, moving = (self._add(RawCase(image=path), f"{where}.{role}") for role, path in paths.items())
            if fixed.name == moving.name:
                raise BadDataset(self.file, where, f"pairs {fixed.name} with itself", "name two different images")
            pairs.append(Pair(fixed.name, moving.name))
        return pairs

    def _add(self, entry: RawCase, where: str) -> Case:
        image = self.folder / entry.image
        name = strip_ending(image)
        match = re.fullmatch(r".+_(?P<subject>\d{4})_(?P<modality>\d{4})", name)
        if match is None or not image.name.endswith(image_endings()):
            form = f"Name_<subject, 4 digits>_<modality, 4 digits>{DEFAULT_ENDING}"
            raise BadDataset(self.file, where, f"names {entry.image}, which is not {form}", "rename the file")
        modality = int(match["modality"])
        if modality not in self.modalities:
            raise BadDataset(
                self.file,
                where,
                f"names {entry.image} of modality {modality}, but 'modality' lists {join(self.modalities)} only",
                "add it there or rename the file",
            )
        if name in self.cases:
            if self.cases[name].image != image:
                raise BadDataset(
                    self.file,
                    where,
                    f"names {image}, but {self.cases[name].image} has the same case name, {name}",
                    "rename one of them",
                )
            return self.cases[name]
        if not image.is_file():
            raise BadDataset(self.file, where, f"names {image}, which does not exist", "add it or drop the entry")
        label = self._find_beside(image, "labels", entry.label)
        if label is None and entry.label is not None:
            raise BadDataset(
                self.file,
                f"{where}.label",
                f"names {self.folder / entry.label}, which does not exist",
                "add the file or drop the key",
            )
        self.cases[name] = Case(
            name=name,
            subject=match["subject"],
            modality=modality,
            image=image,
            label=label,
            mask=self._find_beside(image, "masks", entry.mask),
            landmarks=self._find_beside(image, "keypoints", entry.keypoints, ".csv"),
            annotated_labels=self._parse_annotated(entry.annotated_labels, where),
        )
        return self.cases[name]

    def _find_beside(self, image: Path, kind: str, named: str | None, suffix: str = "") -> Path | None:
        """Find the named file, or the one like labelsTr/X for imagesTr/X; None where neither exists."""
        candidates = [] if named is None else [self.folder / named]
        if image.parent.name.startswith("images"):
            folder = image.parent.with_name(kind + image.parent.name.removeprefix("images"))
            candidates.append(folder / (strip_ending(image) + suffix if suffix else image.name))
        return next(filter(Path.is_file, candidates), None)

    def _parse_annotated(self, values: list[Any] | None, where: str) -> tuple[int, ...] | None:
        if values is None:
            return None
        ids: dict[Any, Any] = {name: number for number, name in self.labels.items()}
        numbers: list[Any] = [ids.get(value, parse_id(value)) if isinstance(value, str) else value for value in values]
        for value, number in zip(values, numbers, strict=True):
            if isinstance(number, bool) or not isinstance(number, int) or number not in {0, *self.labels}:
                raise BadDataset(
                    self.file,
                    f"{where}.annotated_labels",
                    f"holds {value!r}, which is not in 'labels' ({join(self.labels)})",
                    "write ids of the label table",
                )
        return tuple(sorted({number for number in numbers if number}))
