"""A fold's validation: its pairs predicted like any other and scored in the fixed images' own grids."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from tqdm import tqdm

from llmreg.data.dataset import Dataset, Pair
from llmreg.evaluation.pair_scores import Row, evaluate_pair
from llmreg.evaluation.summary import write_results
from llmreg.evaluation.table import format_summary
from llmreg.geometry.io import read_image
from llmreg.inference.models import model_in
from llmreg.inference.predictor import ImageInput, Predictor
from llmreg.machine import available_cores
from llmreg.preprocessing.fingerprint import annotated_in

log = logging.getLogger(__name__)


def validate_fold(
    model_folder: Path, fold: str, dataset: Dataset, pairs: tuple[Pair, ...], device: torch.device
) -> Path | None:
    """Write ``validation/metrics.csv`` and ``summary.json`` into the fold's folder; returns that folder."""
    if not pairs:
        log.warning("Fold %s has no validation pair with labels: nothing is scored.", fold)
        return None
    predictor = Predictor(model_in(model_folder, [fold]), device)
    folder = model_folder / f"fold_{fold}" / "validation"
    rows: list[Row] = []
    if predictor.plans.training.bidirectional:
        pairs += tuple(Pair(pair.moving, pair.fixed) for pair in pairs)
    for pair in tqdm(pairs, desc="Validate", unit="pair"):
        fixed, moving = dataset.case(pair.fixed), dataset.case(pair.moving)
        if fixed.label is None or moving.label is None:
            continue
        found = predictor.predict(
            ImageInput(fixed.image, fixed.modality, fixed.mask), ImageInput(moving.image, moving.modality, moving.mask)
        )
        annotated = annotated_in(fixed, dataset.labels) & annotated_in(moving, dataset.labels)
        scored = evaluate_pair(
            read_image(fixed.label),
            read_image(moving.label),
            found.field,
            dataset.labels,
            annotated,
            found.prealignment,
            threads=available_cores(),
        )
        rows += [
            {"pair_id": f"{fixed.name}_{moving.name}", "fixed": fixed.name, "moving": moving.name} | row
            for row in scored
        ]
    if not rows:
        log.warning("Fold %s: no validation pair has a structure annotated in both images.", fold)
        return None
    summary = write_results(rows, folder)
    log.info("%s", format_summary(summary))
    return folder
