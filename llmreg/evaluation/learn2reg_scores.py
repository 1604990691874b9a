"""Figures that Learn2Reg's evaluation computes in its own way, and its results file.

Source: the challenge's ``evaluation/evaluation.py`` and ``utils.py``, version 2.0 (https://github.com/MDL-UzL/L2R). It
counts in voxels, of images that share a grid; where they do not, displacements lead from the fixed image's voxels to
the moving image's, as in the fields that are written for it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from llmreg.evaluation.metrics import Array
from llmreg.geometry.field import DisplacementField, to_learn2reg
from llmreg.geometry.grid import Grid

_CASE = re.compile(r".*_(\d{4}_\d{4})")


def warp_labels(moving: Array, field: DisplacementField, moving_grid: Grid) -> Array:
    """Warp a label map with SciPy's order 0, which is 0 beyond the centres of the outermost voxels.

    ITK is 0 beyond their edges, so that the two differ where labels touch the border of the image.

    Args:
        moving: (z, y, x) the moving label map.
        field: on the fixed image's grid.
        moving_grid: where ``moving`` lies.

    Returns:
        (z, y, x) on the fixed image's grid, of the type of ``moving``.
    """
    steps = to_learn2reg(field, moving_grid).transpose(2, 1, 0, 3)
    warped = np.empty(field.grid.shape, moving.dtype)
    for part, slab in field.grid.slabs():
        index = slab.indices() + (0, 0, part.start) + steps[part]
        warped[part] = map_coordinates(moving, np.moveaxis(index[..., ::-1], -1, 0), order=0, output=moving.dtype)
    return warped


def point_errors(
    fixed_points: NDArray[np.float64], moving_points: NDArray[np.float64], field: DisplacementField, moving_grid: Grid
) -> NDArray[np.float64]:
    """Target registration error (n,) of landmarks in mm, with the displacement in voxels interpolated by cubic splines.

    Args:
        fixed_points: (n, 3) mm LPS.
        moving_points: (n, 3) mm LPS, where the fixed points ought to land.
        field: on the fixed image's grid; beyond the centres of its outermost voxels nothing moves.
        moving_grid: of the moving image.
    """
    # Indices are rounded, so that one that was whole in the file does not end up just outside the image.
    fixed = field.grid.physical_to_index(fixed_points).round(9)
    moving = moving_grid.physical_to_index(moving_points)
    steps = to_learn2reg(field, moving_grid)
    moved = np.stack([map_coordinates(steps[..., k], fixed.T, output=np.float64) for k in range(3)], axis=1)
    return np.asarray(np.linalg.norm((fixed + moved - moving) * moving_grid.spacing, axis=1))


def make_results(table: pd.DataFrame, name: str, point_errors: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Make the content of the challenge's results file.

    A case's Dice and HD95 are the mean over the labels that both of its label maps have; aggregates are over cases
    (standard deviation with n). HD95 is infinite where warping lost a label. ``num_foldings`` is left out: it counts
    after 3 was added to |J|, and is always 0.

    Args:
        table: of ``metrics.csv``, a row per pair and label.
        name: of the task.
        point_errors: pair_id -> what :func:`point_errors` returns, of the pairs with landmarks.

    Returns:
        ``name``, ``aggregates`` (metric -> mean, std, 30), ``cases`` (fixed and moving, joined by an arrow -> metric ->
        mean, detailed) and ``eval_version``.
    """
    labels = table["label"].dropna().drop_duplicates()
    pairs = dict(tuple(table.groupby("pair_id", sort=False)))
    cases = {}
    for key, (pair_id, rows) in zip(_name_cases(pairs), pairs.items(), strict=True):
        case: dict[str, Any] = {}
        if rows["label"].notna().any():
            by_label = rows.set_index("label").reindex(labels)
            case = {metric: _summarise_case(by_label[f"{metric}_l2r"].tolist()) for metric in ("dice", "hd95")}
        sdlogj = float(rows["sdlogj_learn2reg"].iloc[0])
        case["sdlogj"] = {"mean": sdlogj, "detailed": sdlogj}
        if pair_id in point_errors:
            case["tre"] = _summarise_case(list(point_errors[pair_id]))
        cases[key] = case
    metrics = dict.fromkeys(metric for case in cases.values() for metric in case)
    return {
        "name": name,
        "aggregates": {
            metric: _aggregate([case[metric]["mean"] for case in cases.values() if metric in case], metric)
            for metric in metrics
        },
        "cases": cases,
        "eval_version": "2.0",
    }


def _summarise_case(detailed: list[float]) -> dict[str, Any]:
    values = [value for value in detailed if not np.isnan(value)]
    return {"mean": float(np.mean(values)) if values else float("nan"), "detailed": detailed}


def _aggregate(means: Sequence[float], metric: str) -> dict[str, float]:
    with np.errstate(invalid="ignore"):
        return {
            "mean": float(np.mean(means)),
            "std": float(np.std(means)),
            # SDlogJ and TRE have the 0.7 quantile; the others the 0.3 quantile, although less is better in HD95 too.
            "30": float(np.quantile(means, 0.7 if metric in ("sdlogj", "tre") else 0.3)),
        }


def _name_cases(pairs: Mapping[Any, pd.DataFrame]) -> list[str]:
    """``0006_0000<--0006_0001`` as in the challenge, or whole names where these numbers do not tell pairs apart."""
    names = [(str(rows["fixed"].iloc[0]), str(rows["moving"].iloc[0])) for rows in pairs.values()]
    matches = [(_CASE.fullmatch(fixed), _CASE.fullmatch(moving)) for fixed, moving in names]
    short = [f"{fixed[1]}<--{moving[1]}" for fixed, moving in matches if fixed and moving]
    if len(set(short)) == len(names):
        return short
    return [f"{fixed}<--{moving}" for fixed, moving in names]
