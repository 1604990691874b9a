from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_fold import make_plans

from llmreg.data.dataset import Pair, load_dataset
from llmreg.errors import NothingToTrainOn, NotPrepared, OtherPlans, UnknownName, UserError
from llmreg.model_folder import ModelName
from llmreg.plans.plans import plans_path, read_plans
from llmreg.preprocessing.preprocessed_volumes import volumes_folder
from llmreg.training.experiment import find_fold, model_folder, train_fold, usable_cases
from llmreg.training.options import TrainingOptions
from llmreg.training.plans_choice import PlansChoice

NAME = "Dataset001_X"
OPTIONS = TrainingOptions(workers=0, epochs=1)


def add_templates(volumes: Path) -> None:
    for name in ("all", "fold_0", "fold_1"):
        folder = volumes / "templates" / name
        folder.mkdir(parents=True)
        (folder / "learned_from.json").write_text(name)
        (folder / "0.nii.gz").write_text(name)


def test_a_fold_is_trained_into_a_folder_that_is_enough_to_predict(preprocessed: Path) -> None:
    volumes = volumes_folder(preprocessed, make_plans())
    add_templates(volumes)
    trained = train_fold("1", "fold0", OPTIONS, device_name="cpu")
    assert trained is not None
    root = preprocessed.parents[1]
    assert trained.model == root / "results" / NAME / "dual_pyramid__default__full"
    assert (trained.fold, trained.dataset.name, trained.device.type) == ("0", NAME, "cpu")
    assert trained.validation_pairs == (Pair("X_0003_0000", "X_0003_0001"),)
    assert read_plans(trained.model / "plans.json") == make_plans()
    assert (trained.model / "reference.nii.gz").read_bytes() == b"the reference"
    assert (trained.model / "dataset_fingerprint.json").read_text() == "{}"
    # The templates of all cases and of this fold, and of no other.
    copied = {path.relative_to(trained.model).as_posix() for path in (trained.model / "templates").rglob("*.*")}
    assert copied == {
        f"templates/{name}/{file}" for name in ("all", "fold_0") for file in ("learned_from.json", "0.nii.gz")
    }
    assert (trained.model / "fold_0" / "checkpoint_final.safetensors").exists()


def test_changed_plans_are_written_and_get_a_model_of_their_own(preprocessed: Path) -> None:
    choice = PlansChoice(changes=["loss.smoothness=0.3"], name="smooth")
    trained = train_fold(NAME, "all", OPTIONS, choice, device_name="cpu")
    assert trained is not None
    assert trained.model.name == "dual_pyramid__smooth__full"
    assert trained.fold == "all"
    assert read_plans(plans_path(preprocessed, "smooth")).loss.smoothness == 0.3


def test_changed_plans_with_volumes_of_their_own_have_to_be_preprocessed(preprocessed: Path) -> None:
    choice = PlansChoice(changes=["spacing=[3,3,3]"], name="coarse")
    with pytest.raises(NotPrepared) as caught:
        train_fold(NAME, "0", OPTIONS, choice, device_name="cpu")
    assert (caught.value.step, caught.value.dataset, caught.value.plans) == ("preprocess", NAME, "coarse")
    # The plans are there for the preprocessing, and nothing else.
    assert plans_path(preprocessed, "coarse").exists()
    assert not (preprocessed.parents[1] / "results").exists()


@pytest.mark.parametrize("lost", ["X_0001_0001.json", "reference.nii.gz"])
def test_what_is_missing_is_noticed_before_anything_is_written(preprocessed: Path, lost: str) -> None:
    path = volumes_folder(preprocessed, make_plans()) / lost
    path.unlink()
    with pytest.raises(NotPrepared) as caught:
        train_fold(NAME, "0", OPTIONS, device_name="cpu")
    assert caught.value.path == path
    assert not (preprocessed.parents[1] / "results").exists()


def test_a_folder_with_a_model_of_other_plans_is_left_alone(preprocessed: Path) -> None:
    trained = train_fold(NAME, "0", OPTIONS, device_name="cpu")
    assert trained is not None
    before = (trained.model / "plans.json").read_bytes()
    plans = json.loads((preprocessed / "plans.json").read_text())
    plans["loss"]["smoothness"] = 0.3
    (preprocessed / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(OtherPlans) as caught:
        train_fold(NAME, "0", OPTIONS, device_name="cpu")
    assert caught.value.folder == trained.model
    assert (trained.model / "plans.json").read_bytes() == before


def test_folds_and_configurations_that_do_not_exist_are_refused(preprocessed: Path) -> None:
    with pytest.raises(UnknownName) as caught:
        train_fold(NAME, "0", OPTIONS, configuration="quarter", device_name="cpu")
    assert (caught.value.kind, caught.value.known) == ("configuration", ("full",))
    with pytest.raises(UserError):
        train_fold(NAME, "7", OPTIONS, device_name="cpu")


def test_without_labels_a_fold_needs_an_image_term(preprocessed: Path) -> None:
    description = preprocessed.parents[1] / "raw" / NAME / "dataset.json"
    content = json.loads(description.read_text())
    for entry in content["training"]["1"]:
        (description.parent / entry.pop("label")).unlink()
    description.write_text(json.dumps(content))
    with pytest.raises(NothingToTrainOn):
        train_fold(NAME, "0", OPTIONS, device_name="cpu")
    dataset = load_dataset(description.parent)
    _, split = find_fold(preprocessed, "0", dataset)
    image_plans = make_plans(loss={"similarity": 1})
    assert usable_cases(split, dataset, image_plans) == list(split.training_cases)
    assert usable_cases(split, dataset, make_plans()) == [case for case in split.training_cases if case[-1] == "0"]


def test_a_model_folder_is_named_after_dataset_network_plans_and_configuration(preprocessed: Path) -> None:
    folder = model_folder(NAME, make_plans(), "full")
    assert ModelName.of(folder) == ModelName(NAME, "dual_pyramid", "default", "full")
