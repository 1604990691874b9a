"""Finding a trained model among results."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llmreg.errors import Ambiguous, NotPrepared, UnknownName, UnreadableFile
from llmreg.inference.models import find_model, load_model
from llmreg.training.checkpoints import TrainingState


def write_fold(model: Path, fold: str, checkpoint: str = "final") -> None:
    """A fold's folder as the search for models looks at it: plans, and a checkpoint with its state."""
    folder = model / f"fold_{fold}"
    folder.mkdir(parents=True)
    (model / "plans.json").touch()
    configuration = model.name.rpartition("__")[2]
    state = TrainingState(plans_digest="", llm_sha256="", configuration=configuration, fold=fold, epochs=1)
    save_file(
        {"x": torch.zeros(1)}, folder / f"checkpoint_{checkpoint}.safetensors", {"state": state.model_dump_json()}
    )


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two trained models of dataset 1, beside folders that are none."""
    monkeypatch.setenv("llmreg_results", str(tmp_path))
    for name in ("llm_morph__default__half", "llm_morph__paper__half"):
        write_fold(tmp_path / "Dataset001_A" / name, "0")
    for stray in ("Dataset_old_backup/x__y__z", "Dataset002_B/notes"):
        write_fold(tmp_path / stray, "0")
    return tmp_path


def test_a_model_is_found_by_the_datasets_id_or_name_and_its_plans(results: Path) -> None:
    for dataset in ("1", "001", "Dataset001_A", None):
        model = find_model(dataset, plans="paper")
        assert model.folder == results / "Dataset001_A" / "llm_morph__paper__half"
        assert model.configuration == "half"
        assert model.folds == {"0": model.folder / "fold_0" / "checkpoint_final.safetensors"}


def test_the_network_tells_models_of_the_same_plans_apart(results: Path) -> None:
    other_model = results / "Dataset001_A" / "voxelmorph__paper__half"
    write_fold(other_model, "0")
    with pytest.raises(Ambiguous):
        find_model("1", plans="paper")
    assert find_model("1", plans="paper", network="voxelmorph").folder == other_model


def test_several_models_are_listed(results: Path) -> None:
    with pytest.raises(Ambiguous) as refusal:
        find_model("1")
    expected = ("Dataset001_A/llm_morph__default__half", "Dataset001_A/llm_morph__paper__half")
    assert refusal.value.candidates == expected


def test_without_a_fitting_model_the_trained_ones_are_listed(results: Path) -> None:
    with pytest.raises(NotPrepared, match="Dataset001_A/llm_morph__default__half") as refusal:
        find_model("2")
    assert (refusal.value.step, refusal.value.dataset) == ("train", "2")


def test_half_trained_folds_and_that_of_all_cases_are_left_out_beside_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tmp_path / "llm_morph__default__full"
    write_fold(model, "all")
    assert list(load_model(model).folds) == ["all"]
    for fold, checkpoint in (("0", "final"), ("1", "final"), ("2", "latest")):
        write_fold(model, fold, checkpoint)
    assert list(load_model(model).folds) == ["0", "1"]
    assert not caplog.text
    assert list(load_model(model, ["fold_2", "all"]).folds) == ["2", "all"]
    assert "Fold 2 is not trained to its end" in caplog.text


def test_the_final_checkpoint_is_preferred_to_the_best_and_the_latest(tmp_path: Path) -> None:
    model = tmp_path / "llm_morph__default__full"
    write_fold(model, "0", "latest")
    folder = model / "fold_0"
    content = (folder / "checkpoint_latest.safetensors").read_bytes()
    for name in ("latest", "best", "final"):
        (folder / f"checkpoint_{name}.safetensors").write_bytes(content)
        assert load_model(model).folds["0"].stem == f"checkpoint_{name}"


def test_folders_that_hold_no_such_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile):
        load_model(tmp_path)
    (tmp_path / "plans.json").touch()
    with pytest.raises(NotPrepared):
        load_model(tmp_path)
    write_fold(tmp_path, "1")
    with pytest.raises(UnknownName) as refusal:
        load_model(tmp_path, ["0"])
    assert (refusal.value.name, refusal.value.known) == ("0", ("1",))
