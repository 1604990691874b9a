"""The choice of a dataset's pre-alignment: methods are tried on some cases and judged by the cases' label maps.

A case's own transform never depends on labels. But whether a method helps at all on such images is learned here from
the training labels, once, because higher mutual information need not mean a better placement.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import SimpleITK as sitk

from llmreg.data.case_images import read_case
from llmreg.data.dataset import Case, Dataset, Pair, pairs_among
from llmreg.data.splits import Split
from llmreg.engine.prealignment import PREALIGNMENTS, CaseToPlace, Template
from llmreg.engine.rigid_alignment import COARSE_MM
from llmreg.geometry.arrays import array_to_image
from llmreg.geometry.grid import Grid
from llmreg.geometry.resampling import resample_image
from llmreg.plans.plans import Plans
from llmreg.preprocessing.common_frame import PlacementHints, bring_into_frame
from llmreg.preprocessing.dataset_templates import learn_template_sets, name_templates_without
from llmreg.preprocessing.fingerprint import label_dice
from llmreg.preprocessing.normalization import normalize_image
from llmreg.workers import map_in_processes

# From the most cautious to the most flexible.
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
    labelled = [case for case in dataset.cases if case.label and case.name not in dataset.held_out]
    names: list[str] = []
    for modality in dict.fromkeys((dataset.fixed_modality, dataset.moving_modality)):
        names += _sample_evenly([case.name for case in labelled if case.modality == modality])
    # Where pairs are few, cases that are sampled one by one rarely form any.
    pairs = pairs_among(dataset, names) or _sample_evenly(pairs_among(dataset, [case.name for case in labelled]))
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
    normalization = plans.normalization[reference_case.modality]
    hints = PlacementHints(mask=images.mask)
    framed = bring_into_frame(images.image, normalization, plans, hints, reference_case.image)
    sets = learn_template_sets(dataset, plans, splits, num_processes)
    items = [(case, sets[name_templates_without(case.name, splits)].get(case.modality)) for case in cases]
    place = partial(_place_labels, plans=plans, reference_values=framed.image)
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


def _sample_evenly(items: list[Item]) -> list[Item]:
    return items[:: max(1, len(items) // CASES_A_MODALITY)][:CASES_A_MODALITY]


def _set_method(plans: Plans, method: str, reason: str) -> Plans:
    prealignment = plans.prealignment.model_copy(update={"method": method})
    return plans.model_copy(update={"prealignment": prealignment, "reasons": plans.reasons | {"prealignment": reason}})


def _mean_dice(
    dataset: Dataset, plans: Plans, pairs: Sequence[Pair], labels: dict[str, dict[str, sitk.Image]], method: str
) -> float:
    """Mean over pairs after a method; a pair in which no common structure is annotated counts as 0."""
    scores = []
    for pair in pairs:
        fixed, moving = dataset.case(pair.fixed), dataset.case(pair.moving)
        both = fixed.annotated_structures(plans.labels) & moving.annotated(plans.labels)
        scores.append(label_dice(labels[pair.fixed][method], labels[pair.moving][method], both) or 0.0)
    return float(np.mean(scores))


def _place_labels(
    item: tuple[Case, Template | None], plans: Plans, reference_values: np.ndarray
) -> dict[str, sitk.Image]:
    """The case's label map on a coarse grid of the frame after each method."""
    case, template = item
    frame = plans.frame
    reference = None
    if case.name != plans.prealignment.reference_case:
        reference = array_to_image(reference_values, frame)
    images = read_case(case, plans.labels)
    assert images.label is not None
    size = [max(1, round(n * s / COARSE_MM)) for n, s in zip(frame.size, frame.spacing, strict=True)]
    coarse = Grid.from_centre(size, (COARSE_MM,) * 3, frame.centre)
    normalized, foreground = normalize_image(images.image, plans.normalization[case.modality], images.mask)
    to_place = CaseToPlace(normalized, foreground.centre, frame, reference, template)
    by_stage = {transform.stage: transform for transform in PREALIGNMENTS.get("affine").stages(to_place)}
    *_, by_stage["template"] = PREALIGNMENTS.get("template").stages(to_place)
    labels: dict[str, sitk.Image] = {}
    transform = by_stage["centre"]
    for method in METHODS:
        # A stage that did not help is missing: the one before it stays.
        transform = by_stage.get(method, transform)
        labels[method] = resample_image(images.label, coarse, transform.to_sitk(), "nearest")
    return labels
