"""Predicting many pairs into a folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from llmreg import __version__
from llmreg.errors import UserError
from llmreg.files import check_writable, write_json, written_whole
from llmreg.geometry.io import check_values, read_image, read_linear_transform, write_field, write_image
from llmreg.inference.models import Model
from llmreg.inference.pairs import OPTIONAL_FILES, PairInput, case_name, find_pairs
from llmreg.inference.predictor import ImageInput, Predictor, Registration
from llmreg.preprocessing.cases import read_mask
from llmreg.preprocessing.plans import PLANS_FILE, read_plans

log = logging.getLogger(__name__)

PREDICT_FILE = "predict.json"


def predict_folder(
    source: Path, output: Path, model: Model, device: torch.device, all_pairs: bool = False, overwrite: bool = False
) -> Path:
    """Register every pair of ``source`` and write fields, warped images and ``predict.json`` to ``output``.

    Raises:
        UserError: an input cannot be used, or ``output`` holds predictions and ``overwrite`` is not given.
    """
    record = output / PREDICT_FILE
    if record.exists() and not overwrite:
        raise UserError(f"{output} holds predictions already: choose another folder or add --overwrite.")
    # What may be wrong is found out before the first pair, and wrong names before the network is built.
    pairs = find_pairs(source, read_plans(model.folder / PLANS_FILE), all_pairs)
    _check(pairs)
    predictor = Predictor(model, device)
    check_writable(output)
    # From here on the folder is neither the old nor the new set of predictions.
    record.unlink(missing_ok=True)
    rows = []
    with logging_redirect_tqdm():
        for pair in tqdm(pairs, desc="Predict", unit="pair"):
            start = time.monotonic()
            found = predictor.predict(
                ImageInput(pair.fixed, pair.fixed_modality, pair.fixed_mask),
                ImageInput(pair.moving, pair.moving_modality, pair.moving_mask),
                pair.initial_transform,
            )
            rows.append(_write(pair, found, output) | {"seconds": round(time.monotonic() - start, 2)})
    write_json(
        record,
        {
            "llmreg_version": __version__,
            "model": f"{model.folder.parent.name}/{model.folder.name}",
            "folds": list(model.folds),
            "pairs": rows,
        },
    )
    return record


def _check(pairs: Sequence[PairInput]) -> None:
    """Raises UserError for the first image, mask or transform that cannot be used."""
    masks: dict[Path, set[Path]] = {}
    for pair in pairs:
        for path, mask in ((pair.fixed, pair.fixed_mask), (pair.moving, pair.moving_mask)):
            masks.setdefault(path, set()).update(() if mask is None else (mask,))
    for path, own in tqdm(sorted(masks.items()), desc="Check", unit="image"):
        image = read_image(path)
        check_values(image, path)
        for mask in sorted(own):
            read_mask(mask, image, path)
    for transform in sorted({pair.initial_transform for pair in pairs if pair.initial_transform is not None}):
        read_linear_transform(transform)


def _write(pair: PairInput, found: Registration, output: Path) -> dict[str, Any]:
    files = {
        "field": f"disp_{pair.name}.nii.gz",
        "warped": f"warped_{pair.name}.nii.gz",
        "seen": f"seen_{pair.name}.nii.gz",
        "prealignment": f"prealign_{pair.name}.tfm",
    }
    write_field(found.field, output / files["field"])
    write_image(found.warped, output / files["warped"])
    write_image(found.seen, output / files["seen"])
    with written_whole(output / files["prealignment"]) as temporary:
        sitk.WriteTransform(found.prealignment, str(temporary))
    return {
        "pair_id": pair.pair_id,
        "fixed": case_name(pair.fixed),
        "moving": case_name(pair.moving),
        **files,
        "fixed_path": str(pair.fixed.resolve()),
        "moving_path": str(pair.moving.resolve()),
        **{role: _absolute(getattr(pair, role)) for role in OPTIONAL_FILES},
        "fixed_transform": found.fixed_transform.to_dict(),
        "moving_transform": found.moving_transform.to_dict(),
    }


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.resolve())
