"""Predicting many pairs into a folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from llmreg import __version__
from llmreg.errors import UserError
from llmreg.files import check_writable, read_json, write_json, written_whole
from llmreg.geometry.io import check_values, read_image, read_linear_transform, write_field, write_image
from llmreg.inference.models import Model
from llmreg.inference.pairs import OPTIONAL_FILES, PairInput, case_name, find_pairs
from llmreg.inference.predictor import ImageInput, Predictor, Registration
from llmreg.preprocessing.cases import read_mask
from llmreg.preprocessing.plans import PLANS_FILE, read_plans
from llmreg.training.checkpoint import read_state

log = logging.getLogger(__name__)

PREDICT_FILE = "predict.json"
# A record for each pair that is written, from which a prediction goes on and its parts are put together.
RECORDS_FOLDER = ".pairs"


@dataclass(frozen=True)
class Job:
    """Which pairs are predicted, and what happens to predictions that are there.

    Attributes:
        all_pairs: every fixed with every moving image.
        overwrite: replace predictions that the output folder holds.
        go_on: leave out pairs that are written already.
        part: of ``parts`` processes that share the pairs, this one's number from 0.
        parts: how many there are.
    """

    all_pairs: bool = False
    overwrite: bool = False
    go_on: bool = False
    part: int = 0
    parts: int = 1


def predict_folder(source: Path, output: Path, model: Model, device: torch.device, job: Job) -> Path | None:
    """Register the pairs of ``source`` and write fields, warped images and ``predict.json`` to ``output``.

    Processes that share the pairs need not know of each other: whichever sees that all pairs are written puts
    ``predict.json`` together.

    Returns:
        Where ``predict.json`` is; None as long as other parts are missing.

    Raises:
        UserError: an input cannot be used; ``output`` holds predictions and neither ``overwrite`` nor ``go_on`` is
            given, or those of another model.
    """
    record = output / PREDICT_FILE
    if record.exists() and not (job.overwrite or job.go_on):
        raise UserError(
            f"{output} holds predictions already: choose another folder, or add --overwrite, or --continue for the "
            "pairs that are missing."
        )
    # What may be wrong is found out before the first pair, and wrong names before the network is built.
    pairs = find_pairs(source, read_plans(model.folder / PLANS_FILE), job.all_pairs)
    origin = {
        "llmreg_version": __version__,
        "model": f"{model.folder.parent.name}/{model.folder.name}",
        "folds": list(model.folds),
        "epochs": [read_state(path).epoch for path in model.folds.values()],
    }
    own = pairs[job.part :: job.parts]
    if job.go_on:
        own = [pair for pair in own if not _is_written(pair, output, origin)]
    _check(own)
    predictor = Predictor(model, device)
    check_writable(output)
    # From here on the folder is neither the old nor the new set of predictions.
    record.unlink(missing_ok=True)
    for pair in own:
        _record_of(pair, output).unlink(missing_ok=True)
    with logging_redirect_tqdm():
        for pair in tqdm(own, desc="Predict", unit="pair", disable=job.part > 0):
            start = time.monotonic()
            found = predictor.predict(
                ImageInput(pair.fixed, pair.fixed_modality, pair.fixed_mask),
                ImageInput(pair.moving, pair.moving_modality, pair.moving_mask),
                pair.initial_transform,
            )
            row = _write(pair, found, output) | {"seconds": round(time.monotonic() - start, 2)}
            write_json(_record_of(pair, output), origin | {"asked": _asked(pair), "pair": row})
    written = [_record(pair, output) for pair in pairs]
    rows = [known["pair"] for known in written if known is not None and _differs(known, origin) is None]
    if len(rows) < len(pairs):
        log.info("%d of %d pairs are left to other parts, or to --continue.", len(pairs) - len(rows), len(pairs))
        return None
    write_json(record, origin | {"pairs": rows})
    return record


def _record_of(pair: PairInput, output: Path) -> Path:
    return output / RECORDS_FOLDER / f"{pair.name}.json"


def _record(pair: PairInput, output: Path) -> dict[str, Any] | None:
    path = _record_of(pair, output)
    return read_json(path) if path.exists() else None


def _differs(known: dict[str, Any], origin: dict[str, Any]) -> str | None:
    """What a record's model is that is not this one."""
    keys = ("model", "folds", "epochs")
    return next((f"{key} {known.get(key)}" for key in keys if known.get(key) != origin[key]), None)


def _is_written(pair: PairInput, output: Path, origin: dict[str, Any]) -> bool:
    """Whether the pair was predicted from the same files. Raises UserError when another model did it."""
    known = _record(pair, output)
    if known is None:
        return False
    other = _differs(known, origin)
    if other is not None:
        raise UserError(f"{output} holds predictions of another model ({other}): go on with that, or add --overwrite.")
    files = (known["pair"][key] for key in ("field", "warped", "seen", "prealignment"))
    return bool(known["asked"] == _asked(pair) and all((output / name).exists() for name in files))


def _asked(pair: PairInput) -> dict[str, str]:
    """The pair as JSON."""
    return {key: str(value.resolve() if isinstance(value, Path) else value) for key, value in vars(pair).items()}


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
