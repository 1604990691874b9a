"""A folder as preprocessing leaves it, written without preprocessing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_fold import make_plans, write_volumes

from llmreg.data.dataset import Pair
from llmreg.data.splits import Split, write_splits
from llmreg.plans.plans import write_plans
from llmreg.preprocessing.preprocessed_volumes import volumes_folder

NAME = "Dataset001_X"
CASES = [f"X_{subject:04}_{modality:04}" for subject in (1, 2, 3) for modality in (0, 1)]


@pytest.fixture
def preprocessed_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The preprocessed folder of three subjects with two modalities; fold 0 holds out the third."""
    monkeypatch.setenv("llmreg_home", str(tmp_path))
    for variable in ("llmreg_raw", "llmreg_preprocessed", "llmreg_results"):
        monkeypatch.delenv(variable, raising=False)
    raw, folder = tmp_path / "raw" / NAME, tmp_path / "preprocessed" / NAME
    training: dict[str, list[dict[str, str]]] = {"0": [], "1": []}
    for case in CASES:
        entry = {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"}
        for path in entry.values():
            (raw / path).parent.mkdir(parents=True, exist_ok=True)
            (raw / path).touch()
        training[case[-1]].append(entry)
    content = {
        "modality": {"0": "MR", "1": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "spleen"},
        "training": training,
    }
    (raw / "dataset.json").write_text(json.dumps(content))
    plans = make_plans()
    write_volumes(volumes_folder(folder, plans), names=CASES)
    (volumes_folder(folder, plans) / "reference.nii.gz").write_bytes(b"the reference")
    (folder / "dataset_fingerprint.json").write_text("{}")
    pairs = (Pair("X_0003_0000", "X_0003_0001"),)
    write_splits(folder / "splits.json", [Split(0, tuple(CASES[:4]), tuple(CASES[4:]), (), pairs)])
    write_plans(folder / "plans.json", plans)
    return folder
