"""A raw dataset of files that nobody opens, except to hash them."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmreg.data.dataset import Case, Dataset, Pair


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Three subjects in two modalities: the first two have label maps, the third has landmarks alone."""
    cases = []
    for subject in ("0001", "0002", "0003"):
        for modality in (0, 1):
            name = f"Toy_{subject}_{modality:04d}"
            image, label, points = (tmp_path / kind / name for kind in ("images", "labels", "points"))
            for path in (image, label, points):
                path.parent.mkdir(exist_ok=True)
                path.write_text(f"{path.parent.name} {name}")
            labelled = subject != "0003"
            cases.append(
                Case(
                    name,
                    subject,
                    modality,
                    image,
                    label=label if labelled else None,
                    landmarks=None if labelled else points,
                )
            )
    pairs = tuple(Pair(f"Toy_{s}_0000", f"Toy_{s}_0001") for s in ("0001", "0003"))
    mixed = Pair("Toy_0001_0000", "Toy_0003_0001")
    return Dataset(
        "Dataset001_Toy",
        tmp_path,
        {0: "MR", 1: "CT"},
        {1: "organ"},
        0,
        1,
        "intra_subject",
        tuple(cases),
        registration_val=pairs,
        registration_test=(mixed,),
    )
