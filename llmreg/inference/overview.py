"""What a person wants to know of predicted pairs, in figures, a table and a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmreg.geometry.field import jacobian_determinant
from llmreg.geometry.io import image_to_array
from llmreg.inference.registration import FADE, Registration

Row = Mapping[str, Any]


def figures(found: Registration) -> dict[str, Any]:
    """Of the deformation in the common frame, pre-alignment left out: its size (mm), its folding, its uncertainty."""
    frame = (slice(FADE, -FADE),) * 3
    lengths = np.linalg.norm(found.deformation.vectors[frame], axis=-1)
    folded = 100 * float((jacobian_determinant(found.deformation)[frame] <= 0).mean())
    known: dict[str, Any] = {
        "mean_mm": round(float(lengths.mean()), 2),
        "largest_mm": round(float(lengths.max()), 2),
        "folding_percent": round(folded, 4),
    }
    if found.refined is not None:
        known["refined"] = {"before": found.refined[0], "after": found.refined[1]}
    if found.spread is not None:
        known["uncertainty_mm"] = round(float(image_to_array(found.spread).mean()), 2)
    return known


def table(rows: Sequence[Row]) -> str:
    """A line a pair: how it was placed, how far the network moved it, and how long that took."""
    columns = {
        "placed by": lambda row: f"{row['fixed_transform']['stage']}, {row['moving_transform']['stage']}",
        "mean mm": lambda row: f"{row['mean_mm']:.1f}",
        "most mm": lambda row: f"{row['largest_mm']:.1f}",
        "folded %": lambda row: f"{row['folding_percent']:.3f}",
        "+- mm": lambda row: f"{row['uncertainty_mm']:.1f}" if "uncertainty_mm" in row else "",
        "seconds": lambda row: f"{row['seconds']:.1f}",
    }
    cells = [["pair", *columns], *([row["pair_id"], *(show(row) for show in columns.values())] for row in rows)]
    kept = [column for column in zip(*cells, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in kept]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index < 2 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in zip(*kept, strict=True)
    )


def failures(rows: Sequence[Row], pairs: int) -> str:
    """What went wrong, in a sentence a pair; empty when nothing did."""
    if not rows:
        return ""
    if len(rows) == 1:
        return str(rows[0]["failed"])
    listed = " ".join(f"{row['pair_id']}: {row['failed']}" for row in rows[:3])
    return f"{len(rows)} of {pairs} pairs failed, and the others are written. {listed}" + (
        " ..." if len(rows) > 3 else ""
    )
