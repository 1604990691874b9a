"""What the name of a modality says about its intensities."""

from __future__ import annotations

import re

# Contrast-enhanced, non-contrast, low-dose, cone-beam, fan-beam, high-resolution, multidetector, 4-D CT, angiography.
_CT = re.compile(r"(CE|NC|LD|CB|FB|HR|MD|4D)?CTA?")
# Magnetic resonance by itself or by the names of its usual sequences, with what is written next to them: T1w, T2FLAIR.
_MR = re.compile(
    r"(CE|F)?(MR[IA]?|T[12](W|C|CE|GD|WI|STAR|FS|SPIR|FLAIR)?|FLAIR|PDW?|DWI|ADC|SWI|DCE|MPRAGE|BSSFP|TRUFISP)"
)


def is_ct(modality: str) -> bool:
    """Whether a modality's name says CT: ``CT``, ``ct_venous``, ``CECT``, ``CBCT``, ``CTA`` ...; not ``ACTH``."""
    return any(_CT.fullmatch(word) for word in _words(modality))


def is_mr(modality: str) -> bool:
    """Whether a modality's name says magnetic resonance: ``MR``, ``T1``, ``T2 FLAIR``, ``mri_dce`` ..."""
    return not is_ct(modality) and any(_MR.fullmatch(word) for word in _words(modality))


def _words(modality: str) -> list[str]:
    return re.split(r"[^A-Z0-9]+", modality.upper()) + re.split(r"[^A-Z]+", modality.upper())
