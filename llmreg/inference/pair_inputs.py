"""Which pairs to predict: from the names in a folder, or from a table."""

import csv
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmreg.errors import BadArgument, BadTable, MissingFile, UserError
from llmreg.images.formats import DEFAULT_ENDING, strip_ending
from llmreg.plans.plans import Plans

PAIRS_FILE = "pairs.csv"
_NAME = re.compile(r"(?P<dataset>.+)_(?P<subject>\d{4})_(?P<modality>\d{4})" + re.escape(DEFAULT_ENDING))
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
        pair_id: names the pair in ``predict.json`` and in its scores.
        name: ``<fixed case>_<moving case>``, which names the outputs.
        fixed: the fixed image.
        moving: the moving image.
        fixed_modality: name or number of the modality, None for the model's fixed modality.
        fixed_label: label map of the fixed image.
        fixed_points: landmarks of the fixed image.
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


def find_pairs(source: Path, plans: Plans, *, all_pairs: bool = False) -> list[PairInput]:
    """Find the pairs of a folder or of a ``pairs.csv``.

    Args:
        source: the folder, in which a ``pairs.csv`` or else the images' names tell the pairs; or the table.
        plans: of the model, for its modalities.
        all_pairs: take every fixed with every moving image of a folder, instead of those of one subject.

    Raises:
        MissingFile: ``source`` does not exist.
        BadArgument: names alone do not tell which images are fixed.
        BadTable: the table cannot be used.
        UserError: nothing to register, an image without its partner, or two pairs of one name.
    """
    table = source if source.is_file() else source / PAIRS_FILE
    if table.is_file():
        pairs = _from_table(table, plans)
    elif source.is_dir():
        pairs = _from_names(source, plans, all_pairs=all_pairs)
    else:
        raise MissingFile(source, "give a folder of images, or a table of pairs (pairs.csv)")
    # The pair_id names a pair in predict.json and in the scores, the name its files.
    names = Counter(name for pair in pairs for name in {pair.name, pair.pair_id})
    for name, count in names.items():
        if count > 1:
            raise UserError(f"{source}: two pairs are called {name}: rename an image, or change the pair_id.")
    return pairs


def _from_names(folder: Path, plans: Plans, *, all_pairs: bool) -> list[PairInput]:
    images: dict[int, dict[str, Path]] = {plans.fixed_modality: {}, plans.moving_modality: {}}
    for path in sorted(folder.glob(f"*{DEFAULT_ENDING}")):
        match = _NAME.fullmatch(path.name)
        if match is None:
            raise UserError(
                f"{path} is not named Name_<subject, 4 digits>_<modality, 4 digits>{DEFAULT_ENDING}: rename it, or "
                f"list the pairs in {folder / PAIRS_FILE}."
            )
        if int(match["modality"]) in images:
            images[int(match["modality"])][f"{match['dataset']}_{match['subject']}"] = path
    for role, modality in (("fixed", plans.fixed_modality), ("moving", plans.moving_modality)):
        if not images[modality]:
            raise UserError(
                f"{folder} holds no {role} image (modality {modality:04d}, {plans.normalization[modality].modality}): "
                f"add images named Name_<subject>_{modality:04d}{DEFAULT_ENDING}."
            )
    fixed, moving = images[plans.fixed_modality], images[plans.moving_modality]
    if plans.fixed_modality == plans.moving_modality and not all_pairs:
        raise BadArgument(
            "all_pairs",
            f"Fixed and moving images of {plans.dataset_name} are of one modality, so names do not tell them apart: "
            f"register all pairs, or list the pairs in {folder / PAIRS_FILE}.",
        )
    if all_pairs:
        return [_make_pair(f, m) for f in fixed.values() for m in moving.values() if f != m]
    for subject in sorted(fixed.keys() ^ moving.keys()):
        path, role = (fixed[subject], "moving") if subject in fixed else (moving[subject], "fixed")
        raise BadArgument(
            "all_pairs",
            f"{path} has no {role} image of the same subject: add it, register all pairs, or list the pairs in "
            f"{folder / PAIRS_FILE}.",
        )
    return [_make_pair(fixed[subject], moving[subject]) for subject in fixed]


def _from_table(path: Path, plans: Plans) -> list[PairInput]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, restval="")
            columns, rows = table.fieldnames or [], list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as text ({error}): save it as a UTF-8 table.") from error
    for column in _REQUIRED:
        if column not in columns:
            raise BadTable(path, f"has no column '{column}'", "its first line must name the columns fixed,moving")
    for column in columns:
        if column not in _COLUMNS:
            raise BadTable(path, f"has an unknown column '{column}'", f"known are {', '.join(_COLUMNS)}")
    if not rows:
        raise BadTable(path, "lists no pair", "add a line with a fixed and a moving image")
    pairs = []
    for number, row in enumerate(rows, start=2):
        files: dict[str, Any] = {
            column: path.parent / row[column].strip() for column in _FILES if row.get(column, "").strip()
        }
        for column in _REQUIRED:
            if column not in files:
                raise BadTable(path, f"names no {column} image in line {number}", "add its path")
        for image in files.values():
            if not image.is_file():
                raise BadTable(path, f"names {image} in line {number}, which does not exist", "mend the path")
        texts: dict[str, Any] = {f"{role}_modality": _modality_in_name(files[role], plans) for role in _REQUIRED}
        texts |= {column: row[column] for column in _TEXTS if row.get(column)}
        pairs.append(_make_pair(**files, **texts))
    return pairs


def _modality_in_name(path: Path, plans: Plans) -> int | None:
    match = _NAME.fullmatch(path.name)
    return int(match["modality"]) if match is not None and int(match["modality"]) in plans.normalization else None


def _make_pair(fixed: Path, moving: Path, pair_id: str | None = None, **annotation: Any) -> PairInput:
    name = f"{strip_ending(fixed)}_{strip_ending(moving)}"
    return PairInput(pair_id or name, name, fixed, moving, **annotation)
