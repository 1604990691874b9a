from __future__ import annotations

import pytest

from llmreg.data.modalities import is_ct, is_mr

CT = ("CT", "ct", "CT-contrast", "low dose CT", "ct_venous", "CT/abdomen", "CECT", "NCCT", "FBCT", "CBCT", "CT1", "CTA")
MR = (
    "MR",
    "mri",
    "MR-T1",
    "T1",
    "t1w",
    "T1 post",
    "T1ce",
    "T1_GD",
    "T2",
    "T2w",
    "T2*",
    "T2FLAIR",
    "FLAIR",
    "PDw",
    "DWI",
    "ADC map",
    "mri_dce",
    "MPRAGE",
    "3T MRI",
    "bSSFP",
)
OTHER = ("PET", "ultrasound", "US", "OCT", "octo", "ACTH", "tract", "histology", "X-ray", "0", "", "artery", "smart")


@pytest.mark.parametrize("name", CT + MR + OTHER)
def test_a_name_says_ct_mr_or_nothing(name: str) -> None:
    assert (is_ct(name), is_mr(name)) == (name in CT, name in MR)
