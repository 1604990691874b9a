"""Figures of a registered pair, and a table and a sentence about many of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmreg.geometry.field import jacobian_determinant
from llmreg.geometry.grid import image_to_array
from llmreg.inference.registration import FADE, Registration
from llmreg.predictions import FailedPair, PredictedPair
from llmreg.text_tables import format_table


def measure(registration: Registration) -> dict[str, Any]:
    """Measure the deformation in the common frame, without pre-alignment: length (mm), folding and uncertainty.

    Returns:
        Attributes of :class:`llmreg.predictions.PredictedPair`.
    """
    frame = (slice(FADE, -FADE),) * 3
    lengths = np.linalg.norm(registration.deformation.vectors[frame], axis=-1)
    folded_percent = 100 * float((jacobian_determinant(registration.deformation)[frame] <= 0).mean())
    figures: dict[str, Any] = {
        "mean_mm": round(float(lengths.mean()), 2),
        "largest_mm": round(float(lengths.max()), 2),
        "folding_percent": round(folded_percent, 4),
    }
    if registration.refined is not None:
        figures["refined"] = {"before": registration.refined[0], "after": registration.refined[1]}
    if registration.spread is not None:
        figures["uncertainty_mm"] = round(float(image_to_array(registration.spread).mean()), 2)
    return figures


def format_pairs(pairs: Sequence[PredictedPair]) -> str:
    """A line a pair: how it was placed, how far the network moved it, and how long that took."""
    head = ["pair", "placed by", "mean mm", "most mm", "folded %", "+- mm", "seconds"]
    rows = []
    for pair in pairs:
        placements = [place.stage for place in (pair.fixed_transform, pair.moving_transform) if place is not None]
        figures = (pair.mean_mm, 1), (pair.largest_mm, 1), (pair.folding_percent, 3), (pair.uncertainty_mm, 1)
        numbers = ["" if value is None else f"{value:.{digits}f}" for value, digits in (*figures, (pair.seconds, 1))]
        rows.append([pair.pair_id, ", ".join(placements), *numbers])
    shown = [index for index in range(len(head)) if any(row[index] for row in rows)]
    return format_table([head[index] for index in shown], [[row[index] for index in shown] for row in rows], left=2)


def format_failures(failed: Sequence[FailedPair], pairs: int) -> str:
    """What went wrong, in a sentence a pair; empty when nothing did. ``pairs``: how many there were."""
    if not failed:
        return ""
    if len(failed) == 1:
        return failed[0].failed
    reasons = " ".join(f"{pair.pair_id}: {pair.failed}" for pair in failed[:3])
    ellipsis = " ..." if len(failed) > 3 else ""
    return f"{len(failed)} of {pairs} pairs failed, and the others are written. {reasons}{ellipsis}"
