"""Which pairs to predict: from the names in a folder, or from a table."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmreg.errors import UserError
from llmreg.plans.plans import Plans

PAIRS_FILE = "pairs.csv"
# What came of them, in the folder of predictions.
PREDICT_FILE = "predict.json"
_NAME = re.compile(r"(?P<dataset>.+)_(?P<subject>\d{4})_(?P<modality>\d{4})\.nii\.gz")
_REQUIRED = ("fixed", "moving")
OPTIONAL_FILES = (
    "fixed_label",
    "moving_label",
    "fixed_points",
    "moving_points",
    "fixed_mask",
    "moving_mask",
    "initial_transform",
)
_FILES = _REQUIRED + OPTIONAL_FILES
_TEXTS = ("pair_id", "fixed_modality", "moving_modality")
_COLUMNS = _FILES + _TEXTS


@dataclass(frozen=True)
class PairInput:
    """Two images to register.

    Attributes:
        name: ``<fixed case>_<moving case>``, which names the outputs.
        fixed_modality: name or number of the modality, None for the model's fixed modality.
        fixed_mask: foreground on the fixed image's grid, by which it is placed.
        initial_transform: linear ITK transform, fixed points -> moving points, to start from.
    """

    pair_id: str
    name: str
    fixed: Path
    moving: Path
    fixed_modality: str | int | None = None
    moving_modality: str | int | None = None
    fixed_label: Path | None = None
    moving_label: Path | None = None
    fixed_points: Path | None = None
    moving_points: Path | None = None
    fixed_mask: Path | None = None
    moving_mask: Path | None = None
    initial_transform: Path | None = None


def case_name(path: Path) -> str:
    """The file's name without its image suffix."""
    name = path.name
    for suffix in (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd"):
        if name.endswith(suffix):
            return name[: -len(suffix)]
    return path.stem


def find_pairs(source: Path, plans: Plans, all_pairs: bool = False) -> list[PairInput]:
    """The pairs of a folder or of a ``pairs.csv``.

    Raises:
        UserError: nothing to register, an image without its partner, a missing file, or two pairs of one name.
    """
    if source.is_file():
        pairs = _from_table(source, plans)
    elif (source / PAIRS_FILE).is_file():
        pairs = _from_table(source / PAIRS_FILE, plans)
    elif source.is_dir():
        pairs = _from_names(source, plans, all_pairs)
    else:
        raise UserError(f"{source} does not exist: give a folder of images or a pairs.csv with -i.")
    seen: set[str] = set()
    for pair in pairs:
        # The pair_id names a pair in predict.json and in the scores, the name its files.
        for name in {pair.name, pair.pair_id}:
            if name in seen:
                raise UserError(f"{source}: two pairs are called {name}: rename an image, or change the pair_id.")
            seen.add(name)
    return pairs


def _from_names(folder: Path, plans: Plans, all_pairs: bool) -> list[PairInput]:
    images: dict[int, dict[str, Path]] = {plans.fixed_modality: {}, plans.moving_modality: {}}
    for path in sorted(folder.glob("*.nii.gz")):
        match = _NAME.fullmatch(path.name)
        if match is None:
            raise UserError(
                f"{path} is not named Name_<subject, 4 digits>_<modality, 4 digits>.nii.gz: rename it, or list the "
                f"pairs in {folder / PAIRS_FILE}."
            )
        if int(match["modality"]) in images:
            images[int(match["modality"])][f"{match['dataset']}_{match['subject']}"] = path
    fixed, moving = images[plans.fixed_modality], images[plans.moving_modality]
    if not fixed or not moving:
        lacking = plans.fixed_modality if not fixed else plans.moving_modality
        role = "fixed" if not fixed else "moving"
        raise UserError(
            f"{folder} holds no {role} image (modality {lacking:04d}, {plans.normalization[lacking].modality}): "
            f"add images named Name_<subject>_{lacking:04d}.nii.gz."
        )
    if plans.fixed_modality == plans.moving_modality and not all_pairs:
        raise UserError(
            f"Fixed and moving images of {plans.dataset_name} are of one modality, so names do not tell them apart: "
            f"use --all_pairs, or list the pairs in {folder / PAIRS_FILE}."
        )
    if all_pairs:
        chosen = [(f, m) for f in fixed.values() for m in moving.values() if f != m]
    else:
        alone = sorted(fixed.keys() ^ moving.keys())
        if alone:
            path = fixed.get(alone[0]) or moving[alone[0]]
            role = "moving" if alone[0] in fixed else "fixed"
            raise UserError(
                f"{path} has no {role} image of the same subject: add it, use --all_pairs, or list the pairs in "
                f"{folder / PAIRS_FILE}."
            )
        chosen = [(fixed[subject], moving[subject]) for subject in fixed]
    return [_pair(f, m) for f, m in chosen]


def _from_table(path: Path, plans: Plans) -> list[PairInput]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({error}): save it as a UTF-8 table.") from error
    with io.StringIO(text, newline="") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        missing = next((column for column in _REQUIRED if column not in columns), None)
        if missing:
            raise UserError(f"{path} has no column '{missing}': its first line must name the columns fixed,moving.")
        unknown = next((column for column in columns if column not in _COLUMNS), None)
        if unknown is not None:
            raise UserError(f"{path} has an unknown column '{unknown}': known are {', '.join(_COLUMNS)}.")
        rows = list(reader)
    if not rows:
        raise UserError(f"{path} lists no pair: add a line with a fixed and a moving image.")
    pairs = []
    for number, row in enumerate(rows, start=2):
        files: dict[str, Any] = {}
        for column in _FILES:
            text = (row.get(column) or "").strip()
            if not text and column in _REQUIRED:
                raise UserError(f"{path}, line {number}: the {column} image is missing: add its path.")
            if text:
                files[column] = path.parent / text
                if not files[column].is_file():
                    raise UserError(f"{path}, line {number}: {files[column]} does not exist: mend the path.")
        texts: dict[str, Any] = {column: row[column] for column in _TEXTS if row.get(column)}
        for role in _REQUIRED:
            # As the file's name says, where the table does not.
            match = _NAME.fullmatch(files[role].name)
            if match is not None and int(match["modality"]) in plans.normalization:
                texts.setdefault(f"{role}_modality", int(match["modality"]))
        pairs.append(_pair(**texts, **files))
    return pairs


def _pair(fixed: Path, moving: Path, pair_id: str | None = None, **rest: Any) -> PairInput:
    name = f"{case_name(fixed)}_{case_name(moving)}"
    return PairInput(pair_id or name, name, fixed, moving, **rest)
