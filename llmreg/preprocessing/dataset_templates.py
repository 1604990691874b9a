"""The templates of a dataset: one set from all training cases, and one for each fold without the cases it holds out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from llmreg.data.case_images import read_case, sources_of
from llmreg.data.dataset import Case, Dataset
from llmreg.data.splits import Split
from llmreg.engine.prealignment import Template
from llmreg.engine.templates import (
    Placement,
    PlacementExample,
    align_placements,
    learn_templates,
    local_contrast,
    place_examples,
    read_templates,
    write_templates,
)
from llmreg.files import json_digest, read_json, write_json
from llmreg.geometry.arrays import image_to_array, orient_to_lps
from llmreg.geometry.grid import Grid
from llmreg.plans.plans import Plans
from llmreg.preprocessing.fingerprint import measure_structures
from llmreg.preprocessing.normalization import normalize_image
from llmreg.workers import map_in_processes

TEMPLATES_FOLDER = "templates"
# The name of the set that is learned from all training cases.
EVERYONE = "all"
_DIGEST_FILE = "learned_from.json"
TemplateSet = dict[int, Template]


def name_template_set(fold: int | str) -> str:
    """The name of the templates that are learned from the training cases of a fold."""
    return EVERYONE if fold == EVERYONE else f"fold_{fold}"


def name_templates_without(case: str, splits: Sequence[Split]) -> str:
    """The name of templates that are learned without a case; of all cases' for one that every fold trains on."""
    fold = next((s.fold for s in splits if case in s.validation and case not in s.training_cases), None)
    return EVERYONE if fold is None else name_template_set(fold)


def learn_template_sets(
    dataset: Dataset, plans: Plans, splits: Sequence[Split], num_processes: int
) -> dict[str, TemplateSet]:
    """Learn templates from all training cases, and from those of each fold; by the name of their set."""
    cases = _training_cases(dataset)
    computed = map_in_processes(partial(describe_example, plans=plans), cases, num_processes, "Learn places")
    examples = {case.name: example for case, example in zip(cases, computed, strict=True)}
    members = {name_template_set(split.fold): split.training_cases for split in splits} | {EVERYONE: tuple(examples)}

    def place(names: Sequence[str]) -> dict[str, Placement | None]:
        placements = place_examples([examples[case] for case in names], plans.fixed_modality, plans.frame.centre)
        return dict(zip(names, placements, strict=True))

    common = place(sorted(examples))
    template_sets = {}
    for set_name, training_cases in members.items():
        names = sorted(case for case in training_cases if case in examples)
        # A fold takes over no more of the frame of all cases than its shift and scale as a whole.
        placements = align_placements(list(place(names).values()), [common[case] for case in names])
        template_sets[set_name] = learn_templates([examples[case] for case in names], placements)
    return template_sets


def _training_cases(dataset: Dataset) -> list[Case]:
    return [case for case in dataset.cases if case.label is not None and case.name not in dataset.held_out]


def describe_example(case: Case, plans: Plans) -> PlacementExample:
    """Read what a labelled case tells about where its modality lies."""
    images = read_case(case, plans.labels)
    assert images.label is not None
    normalized, foreground = normalize_image(images.image, plans.normalization[case.modality], images.mask)
    labels = image_to_array(orient_to_lps(images.label))
    structures = measure_structures(labels, labels, Grid.from_image(normalized))
    centroids = {label: centroid for label, (centroid, _) in structures.items()}
    return PlacementExample(case.modality, local_contrast(normalized), foreground.centre, centroids)


def update_templates(dataset: Dataset, plans: Plans, splits: Sequence[Split], volumes: Path, num_processes: int) -> str:
    """Learn the templates below ``volumes`` unless they are up to date. Returns a digest of their training cases."""
    folder = volumes / TEMPLATES_FOLDER
    content: list[Any] = [[case.name, sources_of(case)] for case in _training_cases(dataset)]
    content += [[split.fold, *split.training_cases] for split in splits]
    digest = json_digest(content)
    digest_file = folder / _DIGEST_FILE
    if not digest_file.exists() or read_json(digest_file) != {"sha256": digest}:
        digest_file.unlink(missing_ok=True)
        for name, templates in learn_template_sets(dataset, plans, splits, num_processes).items():
            write_templates(folder / name, templates)
        write_json(digest_file, {"sha256": digest})
    return digest


def read_template_set(folder: Path, name: str) -> TemplateSet:
    """Read a set below a folder of volumes or a model folder; it is empty where nothing was learned."""
    set_folder = folder / TEMPLATES_FOLDER / name
    return read_templates(set_folder) if set_folder.exists() else {}
