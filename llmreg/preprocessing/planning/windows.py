"""Intensity windows: which intensities of a modality become 0 and 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from llmreg.data.modalities import is_ct, is_mr
from llmreg.plans.plan_settings import Normalization
from llmreg.preprocessing.fingerprint import CaseFingerprint
from llmreg.preprocessing.normalization import MR_PERCENTILES, safe_default

# The paper's window (section Data Preparation), for soft tissue.
PAPER_HU = (-180.0, 400.0)
# Structures get a window of their own if their range, with as much again on each side, is less than this share of the
# paper's window.
NARROW = 0.5
# Hounsfield units of a CT span at least the range from air or fat to soft tissue.
LEAST_HU_RANGE = 100.0


def plan_window(cases: Sequence[CaseFingerprint], modality: str) -> tuple[Normalization, str]:
    """Choose how a modality's intensities become [0, 1], and give the reason."""
    low, high = min(case.range[0] for case in cases), max(case.range[1] for case in cases)
    for lower, upper in ((0.0, 1.0), (-1.0, 1.0)):
        # Each image must come near both ends, or its values are small numbers of another unit.
        ends = all(c.range[0] < lower + 0.25 and c.range[1] > upper - 0.25 for c in cases)
        if lower - 0.01 <= low and high <= upper + 0.01 and ends:
            return _window(modality, lower, upper), (
                f"{modality}: values lie in {lower:g} to {upper:g}, so the images are normalised already and are "
                "used as they are."
            )
    if is_mr(modality):
        lower, upper = MR_PERCENTILES
        return safe_default(modality), (
            f"{modality}: clipped to each image's own foreground percentiles {lower:g} and {upper:g}, as in the paper."
        )
    if not is_ct(modality):
        default = safe_default(modality)
        return default, (
            f"{modality}: neither CT nor MR by its name, so the safe default: each image's own foreground percentiles "
            f"{default.lower:g} and {default.upper:g}."
        )
    if low >= 0 or high - low < LEAST_HU_RANGE:
        return safe_default(modality), (
            f"{modality}: values from {low:g} to {high:g} cannot be Hounsfield units, so each image's own percentiles "
            "are used."
        )
    return _plan_hu(cases, modality)


def _plan_hu(cases: Sequence[CaseFingerprint], modality: str) -> tuple[Normalization, str]:
    # Where some cases are annotated, only the annotated structures decide and not whole bodies.
    rows = [row for case in cases for row in case.structure_intensities.values()] or [c.intensities for c in cases]
    low = float(np.percentile([row[1] for row in rows], 10))
    high = float(np.percentile([row[3] for row in rows], 90))
    margin = high - low
    region = "structures" if any(case.structure_intensities for case in cases) else "bodies"
    measured = f"the {region} lie between {low:.0f} and {high:.0f} HU"
    if 0 < 3 * margin < NARROW * (PAPER_HU[1] - PAPER_HU[0]):
        lower, upper = math.floor(low - margin), math.ceil(high + margin)
        return _window(modality, lower, upper), (
            f"{modality}: window {lower} to {upper} HU: {measured}, with that range again on each side."
        )
    if region == "bodies":
        # Every body contains lungs and bones, so its range does not tell that of the structures of interest.
        low, high = PAPER_HU
    lower, upper = round(min(PAPER_HU[0], low)), round(max(PAPER_HU[1], high))
    return _window(modality, lower, upper), (
        f"{modality}: window {lower} to {upper} HU: {measured}; the paper's {PAPER_HU[0]:g} to {PAPER_HU[1]:g} for "
        "soft tissue" + (", widened to hold them." if (lower, upper) != PAPER_HU else ".")
    )


def _window(modality: str, lower: float, upper: float) -> Normalization:
    return Normalization(modality=modality, scheme="window", lower=lower, upper=upper)
