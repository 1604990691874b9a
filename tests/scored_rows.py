"""Rows of scores as evaluation writes them."""

from __future__ import annotations

import numpy as np


def rows_of_two_pairs() -> list[dict[str, object]]:
    """Two pairs with two labels each; one label of the second pair has no score."""
    scores = {"p": (0.6, 0.8), "q": (0.5, np.nan)}
    return [
        {
            "pair_id": pair,
            "label": label,
            "name": name,
            "initial_dice": dice / 2,
            "dice": dice,
            "initial_hd95_mm": 4.0,
            "hd95_mm": 2.0,
            "folding_percent": folded,
            "sdlogj": 0.1,
            "sdlogj_learn2reg": 0.02,
        }
        for (pair, values), folded in zip(scores.items(), (1.0, 2.0), strict=True)
        for (label, name), dice in zip(((1, "a"), (4, "b")), values, strict=True)
    ]
