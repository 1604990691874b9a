"""Finding a trained model among results."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmreg.errors import UserError
from llmreg.inference import models


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two trained models of dataset 1, beside folders that are none."""
    monkeypatch.setenv("llmreg_results", str(tmp_path))
    for name in ("llm_morph__default__half", "llm_morph__paper__half"):
        fold = tmp_path / "Dataset001_A" / name / "fold_0"
        fold.mkdir(parents=True)
        (fold / "checkpoint_final.safetensors").touch()
    for stray in ("Dataset_old_backup/x__y__z/fold_0", "Dataset002_B/notes/fold_0"):
        (tmp_path / stray).mkdir(parents=True)
        (tmp_path / stray / "checkpoint_final.safetensors").touch()
    return tmp_path


def test_what_fits_is_found_by_id_name_and_plans(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "model_in", lambda folder, folds: folder)
    for dataset in ("1", "001", "Dataset001_A", None):
        assert models.find_model(dataset, plans="paper") == results / "Dataset001_A" / "llm_morph__paper__half"


def test_the_network_tells_models_of_the_same_plans_apart(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "model_in", lambda folder, folds: folder)
    other = results / "Dataset001_A" / "voxelmorph__paper__half"
    (other / "fold_0").mkdir(parents=True)
    (other / "fold_0" / "checkpoint_final.safetensors").touch()
    with pytest.raises(UserError, match="--network"):
        models.find_model("1", plans="paper")
    assert models.find_model("1", plans="paper", network="voxelmorph") == other


def test_several_and_none_are_listed(results: Path) -> None:
    with pytest.raises(UserError, match=r"Several.*llm_morph__default__half, .*llm_morph__paper__half\)"):
        models.find_model("1")
    with pytest.raises(UserError, match=r"No trained model.*Dataset001_A/llm_morph__default__half"):
        models.find_model("2")
