"""The terms of the loss and whether pairs are mirrored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmreg.plans.plan_settings import AugmentationSettings
from llmreg.preprocessing.fingerprint import CaseFingerprint, Fingerprint
from llmreg.similarity.loss_settings import LossSettings

# Pairs are mirrored where the anatomy overlaps its mirror image by at least this Dice.
SYMMETRIC = 0.85


def plan_loss(fingerprint: Fingerprint) -> tuple[LossSettings, str]:
    """Choose Dice where everything is annotated, the images' similarity where nothing is, and both in between."""
    if not fingerprint.annotated_cases or not fingerprint.annotated_structures:
        return LossSettings(dice=0.0, similarity=1.0), (
            "No case is annotated: image similarity (MIND-SSC) and smoothness, without Dice."
        )
    shares = fingerprint.annotated_structures.values()
    if min(shares) == 1:
        return LossSettings(), "Every case is annotated for every structure: soft Dice and smoothness, as in the paper."
    return LossSettings(similarity=1.0), (
        f"{100 * fingerprint.annotated_cases:.0f} % of the cases are annotated, the least annotated structure in "
        f"{100 * min(shares):.0f} %: soft Dice where structures are annotated, image similarity (MIND-SSC) everywhere, "
        "smoothness."
    )


def plan_mirroring(cases: Sequence[CaseFingerprint]) -> tuple[AugmentationSettings, str]:
    """Choose to mirror pairs where the anatomy is symmetric."""
    overlap = float(np.median([case.mirror_overlap for case in cases]))
    symmetric = overlap >= SYMMETRIC
    return AugmentationSettings(mirror_axes=("x",) if symmetric else ()), (
        f"The annotated region overlaps its left-right mirror image by {overlap:.2f} (Dice): "
        + ("pairs are mirrored too." if symmetric else "the anatomy is not symmetric, so pairs are not mirrored.")
    )
