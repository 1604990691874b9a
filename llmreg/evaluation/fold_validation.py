"""A fold's validation: its pairs predicted like any other and scored in the fixed images' own grids."""

import logging
from pathlib import Path

import torch
from tqdm import tqdm

from llmreg.data.dataset import Dataset, Pair
from llmreg.evaluation.pair_scores import Row, evaluate_pair
from llmreg.evaluation.summary import format_summary, write_results
from llmreg.images.image_files import read_image
from llmreg.inference.case_reader import ImageInput
from llmreg.inference.models import load_model
from llmreg.inference.predictor import Predictor
from llmreg.machine import available_cores
from llmreg.paths import fold_folder

log = logging.getLogger(__name__)


def validate_fold(
    model_folder: Path, fold: str, dataset: Dataset, pairs: tuple[Pair, ...], device: torch.device
) -> Path | None:
    """Predict and score the validation pairs of a fold.

    Args:
        model_folder: the model's folder.
        fold: name of the fold, ``0`` or ``all``.
        dataset: the raw data.
        pairs: the validation pairs; of a bidirectional model, they are also scored the other way.
        device: where to compute.

    Returns:
        The folder with ``metrics.csv`` and ``summary.json``; None without a pair to score.
    """
    if not pairs:
        log.warning("Fold %s has no validation pair with labels: nothing is scored.", fold)
        return None
    predictor = Predictor(load_model(model_folder, [fold]), device)
    folder = fold_folder(model_folder, fold) / "validation"
    rows: list[Row] = []
    if predictor.plans.training.bidirectional:
        pairs += tuple(Pair(pair.moving, pair.fixed) for pair in pairs)
    for pair in tqdm(pairs, desc="Validate", unit="pair"):
        fixed, moving = dataset.case(pair.fixed), dataset.case(pair.moving)
        if fixed.label is None or moving.label is None:
            continue
        registration = predictor.predict(
            ImageInput(fixed.image, fixed.modality, fixed.mask), ImageInput(moving.image, moving.modality, moving.mask)
        )
        annotated = fixed.annotated_structures(dataset.labels) & moving.annotated_structures(dataset.labels)
        scores = evaluate_pair(
            read_image(fixed.label),
            read_image(moving.label),
            registration.field,
            dataset.labels,
            annotated,
            registration.prealignment,
            threads=available_cores(),
        )
        names = {"pair_id": f"{fixed.name}_{moving.name}", "fixed": fixed.name, "moving": moving.name}
        rows += [names | row for row in scores]
    if not rows:
        log.warning("Fold %s: no validation pair has a structure annotated in both images.", fold)
        return None
    log.info("%s", format_summary(write_results(rows, folder)))
    return folder
