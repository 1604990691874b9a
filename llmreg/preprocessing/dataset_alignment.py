"""How a dataset's cases are placed: its templates, and the choice of a pre-alignment by some cases' label maps."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import SimpleITK as sitk

from llmreg.data.case_images import read_case, sources_of
from llmreg.data.dataset import Case, Dataset, Pair, pairs_among
from llmreg.data.splits import Split
from llmreg.engine.prealignment import PREALIGNMENTS, CaseToPlace, Template
from llmreg.engine.rigid_alignment import ALIGNMENT_MM
from llmreg.engine.templates import (
    PlacementExample,
    align_placements,
    learn_templates,
    local_contrast,
    place_examples,
    read_templates,
    write_templates,
)
from llmreg.files import json_digest, read_json, write_json
from llmreg.geometry.grid import Grid, array_to_image, image_to_array, orient_to_lps
from llmreg.geometry.resampling import resample_image
from llmreg.paths import fold_folder
from llmreg.plans.plans import Plans
from llmreg.preprocessing.common_frame import bring_into_frame, normalize_image
from llmreg.preprocessing.fingerprint import label_dice, measure_structures
from llmreg.workers import map_in_processes

TEMPLATES_FOLDER = "templates"
# The name of the set that is learned from all training cases.
ALL_CASES = "all"
TemplateSet = dict[int, Template]


def name_template_set(fold: int | str) -> str:
    """The name of the templates that are learned from the training cases of a fold."""
    return ALL_CASES if fold == ALL_CASES else fold_folder(Path(), fold).name


def name_templates_without(case: str, splits: Sequence[Split]) -> str:
    """The name of the templates that are learned without a case, or of all cases where every fold trains on it."""
    fold = next((s.fold for s in splits if case in s.validation and case not in s.training_cases), None)
    return ALL_CASES if fold is None else name_template_set(fold)


def learn_template_sets(
    dataset: Dataset, plans: Plans, splits: Sequence[Split], num_processes: int
) -> dict[str, TemplateSet]:
    """Learn templates from all training cases, and from those of each fold. Returns the sets by name."""
    cases = _training_cases(dataset)
    computed = map_in_processes(partial(describe_example, plans=plans), cases, num_processes, "Learn places")
    examples = dict(zip((case.name for case in cases), computed, strict=True))
    members = {name_template_set(split.fold): split.training_cases for split in splits} | {ALL_CASES: tuple(examples)}
    common = place_examples(examples, plans.fixed_modality, plans.frame.centre)
    template_sets = {}
    for set_name, training_cases in members.items():
        of_set = {case: example for case, example in examples.items() if case in training_cases}
        # The fold's placements are shifted and scaled as a whole into the frame of all cases. They take over nothing
        # else from the cases that the fold holds out.
        placements = align_placements(place_examples(of_set, plans.fixed_modality, plans.frame.centre), common)
        template_sets[set_name] = learn_templates(of_set, placements)
    return template_sets


def _training_cases(dataset: Dataset) -> list[Case]:
    return [case for case in dataset.trainable_cases if case.label is not None]


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
    digest = json_digest(
        [
            *([case.name, sources_of(case)] for case in _training_cases(dataset)),
            *([split.fold, *split.training_cases] for split in splits),
        ]
    )
    digest_file = folder / "learned_from.json"
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


# The methods stand from the most cautious to the most flexible.
METHODS = ("centre", "rigid", "affine", "template")
CASES_A_MODALITY = 5
Item = TypeVar("Item")
# A more flexible method must gain at least this mean Dice, to be worth its risk on images unlike these.
LEAST_GAIN = 0.01


def choose_prealignment(dataset: Dataset, plans: Plans, num_processes: int, splits: Sequence[Split]) -> Plans:
    """Give plans the pre-alignment that brings the label maps of sampled pairs nearest to each other, and its reason.

    Templates are judged on cases that were not among their training cases, as far as the splits hold them out.
    """
    if plans.prealignment.aligned_grid is not None:
        return plans
    labelled = _training_cases(dataset)
    names = [
        name
        for modality in dict.fromkeys((dataset.fixed_modality, dataset.moving_modality))
        for name in sample_evenly([c.name for c in labelled if c.modality == modality], CASES_A_MODALITY)
    ]
    # Where pairs are few, cases that are sampled one by one rarely form any.
    pairs = pairs_among(dataset, names) or sample_evenly(
        pairs_among(dataset, [case.name for case in labelled]), CASES_A_MODALITY
    )
    if not pairs:
        return _set_method(
            plans,
            "search",
            "search: there is no labelled pair to judge methods by, so the shift along the body with the highest "
            "mutual information is searched for (predict.json tells how uncertain it is), then a rigid transform; a "
            "case stays centred where these do not raise mutual information.",
        )
    cases = [dataset.case(name) for name in dict.fromkeys(n for pair in pairs for n in (pair.fixed, pair.moving))]
    reference_case = dataset.case(plans.prealignment.reference_case)
    images = read_case(reference_case, plans.labels)
    framed = bring_into_frame(
        images.image, plans.normalization[reference_case.modality], plans, reference_case.image, mask=images.mask
    )
    sets = learn_template_sets(dataset, plans, splits, num_processes)
    items = [(case, sets[name_templates_without(case.name, splits)].get(case.modality)) for case in cases]
    place = partial(_place_labels, plans=plans, reference=array_to_image(framed.image, plans.frame))
    placed = map_in_processes(place, items, num_processes, "Pre-alignment")
    labels = dict(zip((case.name for case in cases), placed, strict=True))
    score = {method: _mean_dice(dataset, plans, pairs, labels, method) for method in METHODS}
    best = "centre"
    for method in METHODS:
        if score[method] > score[best] + LEAST_GAIN:
            best = method
    figures = ", ".join(f"{method} {100 * value:.1f}" for method, value in score.items())
    return _set_method(
        plans,
        best,
        f"{best}: over {len(pairs)} pairs of {len(cases)} training cases, mean Dice (%) after each method was "
        f"{figures}; the reference case is {reference_case.name}.",
    )


def sample_evenly(items: Sequence[Item], number: int) -> Sequence[Item]:
    """Take ``number`` items that are spread over a sequence, from its first; all of them where there are no more."""
    return items[:: max(1, len(items) // number)][:number]


def _set_method(plans: Plans, method: str, reason: str) -> Plans:
    prealignment = plans.prealignment.model_copy(update={"method": method})
    return plans.model_copy(update={"prealignment": prealignment, "reasons": plans.reasons | {"prealignment": reason}})


def _mean_dice(
    dataset: Dataset, plans: Plans, pairs: Sequence[Pair], labels: dict[str, dict[str, sitk.Image]], method: str
) -> float:
    """Mean Dice over pairs after a method; a pair in which no common structure is annotated counts as 0."""
    annotated = {case.name: case.annotated_structures(plans.labels) for case in dataset.cases}
    scores = [
        label_dice(labels[p.fixed][method], labels[p.moving][method], annotated[p.fixed] & annotated[p.moving]) or 0.0
        for p in pairs
    ]
    return float(np.mean(scores))


def _place_labels(item: tuple[Case, Template | None], plans: Plans, reference: sitk.Image) -> dict[str, sitk.Image]:
    """The case's label map on a coarse grid of the frame after each method."""
    case, template = item
    frame = plans.frame
    images = read_case(case, plans.labels)
    assert images.label is not None
    size = [max(1, round(n * s / ALIGNMENT_MM)) for n, s in zip(frame.size, frame.spacing, strict=True)]
    coarse = Grid.from_centre(size, (ALIGNMENT_MM,) * 3, frame.centre)
    normalized, foreground = normalize_image(images.image, plans.normalization[case.modality], images.mask)
    aligned_to = None if case.name == plans.prealignment.reference_case else reference
    to_place = CaseToPlace(normalized, foreground.centre, frame, aligned_to, template)
    by_stage = {transform.stage: transform for transform in PREALIGNMENTS.get("affine").stages(to_place)}
    *_, by_stage["template"] = PREALIGNMENTS.get("template").stages(to_place)
    labels: dict[str, sitk.Image] = {}
    transform = by_stage["centre"]
    for method in METHODS:
        # A stage that did not help is missing: the one before it stays.
        transform = by_stage.get(method, transform)
        labels[method] = resample_image(images.label, coarse, transform.to_sitk(), "nearest")
    return labels
