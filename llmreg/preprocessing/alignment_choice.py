"""Which pre-alignment a dataset gets: tried on some of its cases and judged by their label maps.

A case's own transform never looks at labels. Whether a stage helps at all on such images is learned from the
training labels here, once, because a better mutual information need not mean a better place.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, TypeVar

import numpy as np
import SimpleITK as sitk

from llmreg.data.case_images import read_case
from llmreg.data.dataset import Case, Dataset, pairs_among
from llmreg.data.splits import Split
from llmreg.engine.prealignment import COARSE_MM, stages
from llmreg.engine.templates import Template, place_case
from llmreg.geometry.field import resample_image
from llmreg.geometry.grid import Grid
from llmreg.geometry.io import array_to_image
from llmreg.plans.plans import Plans
from llmreg.preprocessing.dataset_templates import learn, set_without
from llmreg.preprocessing.fingerprint import annotated_in, label_dice
from llmreg.preprocessing.normalization import normalized
from llmreg.preprocessing.preprocess import PlacementHints, bring_into_frame
from llmreg.workers import in_parallel

Method = Literal["centre", "rigid", "affine", "template"]
METHODS: tuple[Method, ...] = ("centre", "rigid", "affine", "template")
CASES_A_MODALITY = 5
Item = TypeVar("Item")
# A more flexible stage must be worth its risk on images unlike these.
LEAST_GAIN = 0.01


def choose_prealignment(
    dataset: Dataset, plans: Plans, num_processes: int, splits: Sequence[Split]
) -> tuple[Plans, str]:
    """The plans with the pre-alignment that brought the label maps of sampled pairs nearest, and the reason.

    Templates are judged on cases that they were learned without, as far as the splits hold them out.
    """
    if plans.prealignment.aligned_grid is not None:
        return plans, plans.reasons["prealignment"]
    labelled = [case for case in dataset.cases if case.label and case.name not in dataset.held_out]
    names: list[str] = []
    for modality in dict.fromkeys((dataset.fixed_modality, dataset.moving_modality)):
        names += _spread([case.name for case in labelled if case.modality == modality])
    pairs = pairs_among(dataset, names)
    if not pairs:
        # Where pairs are few, cases taken one by one rarely make any.
        pairs = _spread(pairs_among(dataset, [case.name for case in labelled]))
    chosen = [dataset.case(name) for name in dict.fromkeys(n for pair in pairs for n in (pair.fixed, pair.moving))]
    if not pairs:
        return _with_method(plans, "search"), (
            "search: no labelled pair tells which pre-alignment helps, so shifts along the body are tried for the "
            "best-looking one (predict.json tells how uncertain it is), then rigid; a case is left centred where these "
            "do not raise mutual information."
        )
    first = dataset.case(plans.prealignment.reference_case)
    images = read_case(first, plans.labels)
    guides = PlacementHints(mask=images.mask)
    framed = bring_into_frame(images.image, plans.normalization[first.modality], plans, guides, first.image)
    sets = learn(dataset, plans, splits, num_processes)
    items = [(case, sets[set_without(case.name, splits)].get(case.modality)) for case in chosen]
    place = partial(_placed_labels, plans=plans, reference_values=framed.image)
    found = in_parallel(place, items, num_processes, "Pre-alignment")
    placed = dict(zip((case.name for case in chosen), found, strict=True))
    known = {case.name: annotated_in(case, plans.labels) for case in chosen}
    score = {
        method: float(
            np.mean(
                [
                    label_dice(placed[p.fixed][method], placed[p.moving][method], known[p.fixed] & known[p.moving])
                    or 0.0
                    for p in pairs
                ]
            )
        )
        for method in METHODS
    }
    best: Method = "centre"
    for method in METHODS:
        if score[method] > score[best] + LEAST_GAIN:
            best = method
    figures = ", ".join(f"{method} {100 * value:.1f}" for method, value in score.items())
    return _with_method(plans, best), (
        f"{best}: over {len(pairs)} pairs of {len(chosen)} training cases, mean Dice (%) after each stage was "
        f"{figures}; the reference case is {first.name}."
    )


def _spread(items: list[Item]) -> list[Item]:
    return items[:: max(1, len(items) // CASES_A_MODALITY)][:CASES_A_MODALITY]


def _with_method(plans: Plans, method: Method | Literal["search"]) -> Plans:
    return plans.model_copy(update={"prealignment": plans.prealignment.model_copy(update={"method": method})})


def _placed_labels(
    item: tuple[Case, Template | None], plans: Plans, reference_values: np.ndarray
) -> dict[str, sitk.Image]:
    """The case's label map in a coarse frame after each method."""
    case, template = item
    reference = array_to_image(reference_values, plans.frame)
    images = read_case(case, plans.labels)
    assert images.label is not None
    frame = plans.frame
    size = [max(1, round(n * s / COARSE_MM)) for n, s in zip(frame.size, frame.spacing, strict=True)]
    coarse = Grid.axis_aligned(size, (COARSE_MM,) * 3, frame.centre)
    own = None if case.name == plans.prealignment.reference_case else reference
    normal, foreground = normalized(images.image, plans.normalization[case.modality], images.mask)
    affine = _with_method(plans, "affine").prealignment
    tried = stages(normal, foreground.centre, frame, affine, own)
    by_method = {found.stage: found for found in tried}
    if template is not None:
        by_method["template"] = place_case(normal, foreground.centre, template)
    placed: dict[str, sitk.Image] = {}
    transform = by_method["centre"]
    for method in METHODS:
        # A stage that did not help was dropped; without a template, the centre is taken.
        transform = by_method.get(method, by_method["centre"] if method == "template" else transform)
        placed[method] = resample_image(images.label, coarse, transform.to_sitk(), "nearest")
    return placed
