"""Templates of a dataset: learned from its training cases, once for each fold without the cases that it holds out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from llmreg.data.case_images import read_case
from llmreg.data.dataset import Case, Dataset
from llmreg.data.provenance import sources_of
from llmreg.data.splits import Split
from llmreg.engine.templates import (
    Example,
    Placement,
    Template,
    in_one_frame,
    learn_templates,
    place_examples,
    read_templates,
    view,
    write_templates,
)
from llmreg.files import json_digest, read_json, write_json
from llmreg.geometry.grid import Grid
from llmreg.geometry.io import image_to_array, oriented_lps
from llmreg.plans.plans import Plans
from llmreg.preprocessing.fingerprint import structures
from llmreg.preprocessing.normalization import normalized
from llmreg.workers import in_parallel

TEMPLATES_FOLDER = "templates"
EVERYONE = "all"
_LEARNED_FROM = "learned_from.json"
Templates = dict[int, Template]


def set_without(case: str, splits: Sequence[Split]) -> str:
    """The name of the templates that were learned without a case; of all, for one that every fold trains on."""
    fold = next((s.fold for s in splits if case in s.validation and case not in s.training_cases), None)
    return EVERYONE if fold is None else fold_set(fold)


def fold_set(fold: int | str) -> str:
    return EVERYONE if fold == EVERYONE else f"fold_{fold}"


def learn(dataset: Dataset, plans: Plans, splits: Sequence[Split], num_processes: int) -> dict[str, Templates]:
    """Templates by the name of their set: of all training cases, and of those of each fold."""
    cases = _training_cases(dataset)
    found = in_parallel(partial(case_example, plans=plans), cases, num_processes, "Learn places")
    examples = {case.name: example for case, example in zip(cases, found, strict=True)}
    chosen = {fold_set(split.fold): split.training_cases for split in splits} | {EVERYONE: tuple(examples)}

    def placed(names: Sequence[str]) -> dict[str, Placement | None]:
        own = place_examples([examples[case] for case in names], plans.fixed_modality, plans.frame.centre)
        return dict(zip(names, own, strict=True))

    common = placed(sorted(examples))
    templates = {}
    for name, members in chosen.items():
        names = sorted(case for case in members if case in examples)
        # Of the frame of all cases, a fold takes over no more than where and how large it is as a whole.
        places = in_one_frame(list(placed(names).values()), [common[case] for case in names])
        templates[name] = learn_templates([examples[case] for case in names], places)
    return templates


def _training_cases(dataset: Dataset) -> list[Case]:
    return [case for case in dataset.cases if case.label is not None and case.name not in dataset.held_out]


def case_example(case: Case, plans: Plans) -> Example:
    """What a labelled case tells about where its modality lies."""
    images = read_case(case, plans.labels)
    assert images.label is not None
    normal, foreground = normalized(images.image, plans.normalization[case.modality], images.mask)
    grid = Grid.from_image(normal)
    labels = image_to_array(oriented_lps(images.label))
    found = structures(labels, labels, grid)
    centroids = {label: centroid for label, (centroid, _) in found.items()}
    return Example(case.modality, view(normal), foreground.centre, centroids)


def learned(dataset: Dataset, plans: Plans, splits: Sequence[Split], volumes: Path, num_processes: int) -> str:
    """Learn the templates below ``volumes`` unless they are there; a digest of what they are learned from."""
    folder = volumes / TEMPLATES_FOLDER
    content: list[Any] = [[case.name, sources_of(case)] for case in _training_cases(dataset)]
    content += [[split.fold, *split.training_cases] for split in splits]
    digest = json_digest(content)
    known = folder / _LEARNED_FROM
    if not known.exists() or read_json(known) != {"sha256": digest}:
        known.unlink(missing_ok=True)
        for name, templates in learn(dataset, plans, splits, num_processes).items():
            write_templates(folder / name, templates)
        write_json(known, {"sha256": digest})
    return digest


def templates_in(folder: Path, name: str) -> Templates:
    """The templates of a set below a folder of volumes or a model folder; none where nothing was learned."""
    below = folder / TEMPLATES_FOLDER / name
    return read_templates(below) if below.exists() else {}
