"""Predictions that were never predicted: pairs with known fields, scored, in folders as the commands write them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmreg.evaluation.pair_scores import evaluate_pair
from llmreg.evaluation.summary import write_results
from llmreg.files import file_digest
from llmreg.geometry.field import DisplacementField
from llmreg.geometry.grid import Grid, array_to_image
from llmreg.images.fields import write_field
from llmreg.images.image_files import write_image

# Names that a page must not take for its own.
EVIL = "<script>alert('a & b')</script>"
NAMES = {1: EVIL, 2: "organ"}


def balls(grid: Grid, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """An image whose left, back and upper corner is bright, and two labelled balls, moved ``shift`` mm to the left."""
    points = grid.physical_points() - grid.centre
    labels = np.zeros(grid.shape, np.uint8)
    for label, centre in ((1, (-6.0 + shift, 0.0, 0.0)), (2, (6.0 + shift, 2.0, 4.0))):
        labels[np.linalg.norm(points - np.array(centre), axis=-1) < 6] = label
    image = 100.0 + 50 * labels + np.random.default_rng(0).normal(0, 2, grid.shape)
    corner = grid.corners() - grid.centre
    bright = corner[np.argmax(corner @ np.ones(3))]
    image[np.linalg.norm(points - bright, axis=-1) < 7] = 400
    return image.astype(np.float32), labels


def write_predictions(
    folder: Path, fixed: Grid, shifts: Sequence[float], share: float = 1.0, uncertainty: bool = True
) -> Path:
    """A scored folder with a pair for each shift (mm), which the field undoes to some share.

    Pairs are called ``pair 0``, ``pair 1`` and so on, their cases ``F_0000_0000`` and ``M_0000_0001``; images lie in
    ``images`` beside the folder, the moving ones on a grid of their own.
    """
    images = folder.parent / "images"
    moving = Grid.from_centre((34, 32, 30), (1.2, 1.3, 1.4), fixed.centre)
    rows, scores = [], []
    for number, shift in enumerate(shifts):
        names = {"fixed": f"F_{number:04}_0000", "moving": f"M_{number:04}_0001"}
        row = {"pair_id": f"pair {number}", **names, "format": "itk", "seconds": 1.5}
        maps = {}
        for role, grid, offset in (("fixed", fixed, 0.0), ("moving", moving, shift)):
            image, labels = balls(grid, offset)
            maps[role] = array_to_image(labels, grid)
            for kind, volume in (("path", array_to_image(image, grid)), ("label", maps[role])):
                row[f"{role}_{kind}"] = str(images / f"{names[role]}_{kind}.nii.gz")
                write_image(volume, Path(row[f"{role}_{kind}"]))
        vectors = np.zeros((*fixed.shape, 3), np.float32)
        vectors[..., 0] = share * shift
        field = DisplacementField(vectors, fixed)
        row["field"] = f"disp_{number}.nii.gz"
        write_field(field, folder / row["field"])
        if uncertainty:
            row["uncertainty"] = f"uncertainty_{number}.nii.gz"
            write_image(array_to_image(np.abs(vectors[..., 0]) + 0.5, fixed), folder / row["uncertainty"])
        rows.append(row)
        pair_names = {"pair_id": row["pair_id"], **names}
        scores += [pair_names | score for score in evaluate_pair(maps["fixed"], maps["moving"], field, NAMES)]
    failed = [{"pair_id": "pair 99", "fixed": "F", "moving": "M", "failed": f"no {EVIL}"}]
    content = {
        "model": "Dataset999_Demo/tiny",
        "folds": ["0"],
        "options": {"refine": 30},
        "pairs": rows,
        "failed": failed,
    }
    (folder / "predict.json").write_text(json.dumps(content))
    write_results(scores, folder, {"predictions_sha256": file_digest(folder / "predict.json")})
    return folder


def write_benchmark(folder: Path, fixed: Grid, shifts: Sequence[float]) -> Path:
    """Two methods that undo the shifts wholly and by half, and one that failed."""
    for name, share in (("half", 0.5), ("whole", 1.0)):
        write_predictions(folder / name / "fold_0", fixed, shifts, share, uncertainty=name == "whole")
    methods = {"half": f"Half {EVIL}", "whole": "Whole"}
    content = {"dataset": "2", "folds": ["0"], "methods": methods, "failed": {"ants": "ANTs is not installed"}}
    (folder / "benchmark.json").write_text(json.dumps(content))
    return folder
