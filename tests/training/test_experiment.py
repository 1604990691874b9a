from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_fold import make_plans

from llmreg.data.dataset import Pair, load_dataset
from llmreg.devices import detect_machine
from llmreg.errors import BadArgument, MissingFile, NotPrepared, OtherPlans, UnknownName, UserError
from llmreg.paths import ModelName
from llmreg.plans.plans import Plans, plans_path, read_plans, write_plans
from llmreg.preprocessing.planning.sizes import Budget, plan_configuration
from llmreg.preprocessing.preprocessed_volumes import volumes_folder
from llmreg.training.experiment import PlansChoice, choose_plans, find_fold, model_folder, train_fold, usable_cases
from llmreg.training.options import TrainingOptions
from llmreg.training.training_errors import NothingToTrainOn

NAME = "Dataset001_X"
OPTIONS = TrainingOptions(workers=0, epochs=1)


def add_templates(volumes: Path) -> None:
    for name in ("all", "fold_0", "fold_1"):
        folder = volumes / "templates" / name
        folder.mkdir(parents=True)
        (folder / "learned_from.json").write_text(name)
        (folder / "0.nii.gz").write_text(name)


def test_a_fold_is_trained_into_a_folder_that_is_enough_to_predict(preprocessed_folder: Path) -> None:
    volumes = volumes_folder(preprocessed_folder, make_plans())
    add_templates(volumes)
    trained_fold = train_fold("1", "fold0", OPTIONS, device_name="cpu")
    assert trained_fold is not None
    root = preprocessed_folder.parents[1]
    assert trained_fold.model == root / "results" / NAME / "dual_pyramid__default__full"
    assert (trained_fold.fold, trained_fold.dataset.name, trained_fold.device.type) == ("0", NAME, "cpu")
    assert trained_fold.validation_pairs == (Pair("X_0003_0000", "X_0003_0001"),)
    assert read_plans(trained_fold.model / "plans.json") == make_plans()
    assert (trained_fold.model / "reference.nii.gz").read_bytes() == b"the reference"
    assert (trained_fold.model / "dataset_fingerprint.json").read_text() == "{}"
    # Only the templates of all cases and of this fold are copied.
    template_files = {
        path.relative_to(trained_fold.model).as_posix() for path in (trained_fold.model / "templates").rglob("*.*")
    }
    assert template_files == {
        f"templates/{name}/{file}" for name in ("all", "fold_0") for file in ("learned_from.json", "0.nii.gz")
    }
    assert (trained_fold.model / "fold_0" / "checkpoint_final.safetensors").exists()


def test_changed_plans_are_written_and_get_a_model_of_their_own(preprocessed_folder: Path) -> None:
    choice = PlansChoice(changes=["loss.smoothness=0.3"], name="smooth")
    trained_fold = train_fold(NAME, "all", OPTIONS, choice, device_name="cpu")
    assert trained_fold is not None
    assert trained_fold.model.name == "dual_pyramid__smooth__full"
    assert trained_fold.fold == "all"
    assert read_plans(plans_path(preprocessed_folder, "smooth")).loss.smoothness == 0.3


def test_changed_plans_with_volumes_of_their_own_have_to_be_preprocessed(preprocessed_folder: Path) -> None:
    choice = PlansChoice(changes=["spacing=[3,3,3]"], name="coarse")
    with pytest.raises(NotPrepared) as refusal:
        train_fold(NAME, "0", OPTIONS, choice, device_name="cpu")
    assert (refusal.value.step, refusal.value.dataset, refusal.value.plans) == ("preprocess", NAME, "coarse")
    # Only the plans are written, for preprocessing.
    assert plans_path(preprocessed_folder, "coarse").exists()
    assert not (preprocessed_folder.parents[1] / "results").exists()


@pytest.mark.parametrize("lost", ["X_0001_0001.json", "reference.nii.gz"])
def test_what_is_missing_is_noticed_before_anything_is_written(preprocessed_folder: Path, lost: str) -> None:
    path = volumes_folder(preprocessed_folder, make_plans()) / lost
    path.unlink()
    with pytest.raises(NotPrepared) as refusal:
        train_fold(NAME, "0", OPTIONS, device_name="cpu")
    assert refusal.value.path == path
    assert not (preprocessed_folder.parents[1] / "results").exists()


def test_a_folder_with_a_model_of_other_plans_is_left_alone(preprocessed_folder: Path) -> None:
    trained_fold = train_fold(NAME, "0", OPTIONS, device_name="cpu")
    assert trained_fold is not None
    before = (trained_fold.model / "plans.json").read_bytes()
    plans = json.loads((preprocessed_folder / "plans.json").read_text())
    plans["loss"]["smoothness"] = 0.3
    (preprocessed_folder / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(OtherPlans) as refusal:
        train_fold(NAME, "0", OPTIONS, device_name="cpu")
    assert refusal.value.folder == trained_fold.model
    assert (trained_fold.model / "plans.json").read_bytes() == before


def test_folds_and_configurations_that_do_not_exist_are_refused(preprocessed_folder: Path) -> None:
    with pytest.raises(UnknownName) as refusal:
        train_fold(NAME, "0", OPTIONS, configuration="quarter", device_name="cpu")
    assert (refusal.value.kind, refusal.value.known) == ("configuration", ("full",))
    with pytest.raises(UserError):
        train_fold(NAME, "7", OPTIONS, device_name="cpu")


def test_without_labels_a_fold_needs_an_image_term(preprocessed_folder: Path) -> None:
    description = preprocessed_folder.parents[1] / "raw" / NAME / "dataset.json"
    content = json.loads(description.read_text())
    for entry in content["training"]["1"]:
        (description.parent / entry.pop("label")).unlink()
    description.write_text(json.dumps(content))
    with pytest.raises(NothingToTrainOn):
        train_fold(NAME, "0", OPTIONS, device_name="cpu")
    dataset = load_dataset(description.parent)
    _, split = find_fold(preprocessed_folder, "0", dataset)
    image_plans = make_plans(loss={"similarity": 1})
    assert usable_cases(split, dataset, image_plans) == list(split.training_cases)
    assert usable_cases(split, dataset, make_plans()) == [case for case in split.training_cases if case[-1] == "0"]


def test_a_model_folder_is_named_after_dataset_network_plans_and_configuration(preprocessed_folder: Path) -> None:
    folder = model_folder(NAME, make_plans(), "full")
    assert ModelName.of(folder) == ModelName(NAME, "dual_pyramid", "default", "full")


BUDGET = Budget(detect_machine())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_plans(tmp_path / "plans.json", make_plans(reasons={"network.width": "it is small", "spacing": "theirs"}))
    return tmp_path


def test_plans_are_read_by_their_name(folder: Path) -> None:
    assert choose_plans(folder, PlansChoice()).plans_name == "default"
    with pytest.raises(NotPrepared) as refusal:
        choose_plans(folder, PlansChoice("paper"))
    assert (refusal.value.step, refusal.value.path) == ("plan", folder / "plans_paper.json")


def test_changed_plans_have_a_name_and_nothing_is_written(folder: Path) -> None:
    before = sorted(folder.iterdir())
    changed_plans = choose_plans(folder, PlansChoice(changes=["loss.smoothness=0.3"], name="smooth"))
    assert (changed_plans.plans_name, changed_plans.loss.smoothness) == ("smooth", 0.3)
    assert sorted(folder.iterdir()) == before
    # The same changes may have the name again; other changes need another one.
    write_plans(folder / "plans_smooth.json", changed_plans)
    assert choose_plans(folder, PlansChoice(changes=["loss.smoothness=0.3"], name="smooth")) == changed_plans
    with pytest.raises(OtherPlans) as refusal:
        choose_plans(folder, PlansChoice(changes=["loss.smoothness=0.4"], name="smooth"))
    assert refusal.value.folder == folder / "plans_smooth.json"


def test_memory_is_estimated_for_what_the_changes_train(folder: Path) -> None:
    plain, wide, smooth, timed = (
        choose_plans(folder, PlansChoice(changes=[change], name="changed")).configurations["full"].memory_gb
        for change in ("network.width=1", "network.width=8", "loss.similarity=1", "training.epochs=3")
    )
    written = make_plans().configurations["full"].memory_gb
    assert plain == timed == written
    assert wide > plan_configuration((16, 16, 16), 1, make_plans().network, BUDGET).memory_gb
    assert smooth != written
    chosen = PlansChoice(changes=["network.width=8", "configurations.full.recompute=true"], name="changed")
    assert choose_plans(folder, chosen).configurations["full"].recompute


@pytest.mark.parametrize(
    "choice", [PlansChoice(changes=["loss.dice=2"]), PlansChoice(name="smooth"), PlansChoice(changes=[], name="smooth")]
)
def test_changes_and_names_belong_together(folder: Path, choice: PlansChoice) -> None:
    with pytest.raises(BadArgument) as refusal:
        choose_plans(folder, choice)
    assert refusal.value.argument == "name"


@pytest.mark.parametrize("name", ["two__parts", "a/b", "-x", "ends_"])
def test_names_must_fit_into_that_of_a_folder(folder: Path, name: str) -> None:
    with pytest.raises(BadArgument) as refusal:
        choose_plans(folder, PlansChoice(changes=["loss.dice=2"], name=name))
    assert refusal.value.argument == "name"
    assert f"'{name}'" in refusal.value.problem


def test_another_network_has_its_default_settings_and_the_plans_keep_their_name(folder: Path) -> None:
    plans = choose_plans(folder, PlansChoice(network="voxelmorph"))
    assert (plans.plans_name, plans.network.name) == ("default", "voxelmorph")
    assert plans.reasons == {"spacing": "theirs"}
    copied_plans = choose_plans(folder, PlansChoice(name="copy", network="voxelmorph"))
    assert copied_plans.plans_name == "copy"
    # The plans' own network keeps its settings.
    assert choose_plans(folder, PlansChoice(network="dual_pyramid")).network == make_plans().network
    with pytest.raises(UnknownName):
        choose_plans(folder, PlansChoice(network="unheard_of"))


@pytest.fixture
def llm_folder(folder: Path) -> Path:
    for name in ("default", "paper"):
        plans = make_plans(network={"name": "llm_morph"}).model_copy(update={"plans_name": name})
        write_plans(folder / ("plans.json" if name == "default" else f"plans_{name}.json"), plans)
    return folder


def ablate(folder: Path, **choice: object) -> Plans:
    return choose_plans(folder, PlansChoice(ablation="no-lora", **choice))  # type: ignore[arg-type]


def test_an_ablation_names_the_plans(llm_folder: Path) -> None:
    plans = ablate(llm_folder)
    assert (plans.plans_name, plans.network.llm.lora) == ("no-lora", None)
    assert ablate(llm_folder, plans="paper").plans_name == "paper_no-lora"
    assert ablate(llm_folder, name="mine").plans_name == "mine"
    changed_plans = ablate(llm_folder, changes=["network.width=4"])
    assert (changed_plans.network.width, changed_plans.network.llm.lora) == (4, None)


def test_plans_and_the_model_to_start_from_are_given_by_name(
    preprocessed_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_plans(plans_path(preprocessed_folder, "quick"), make_plans(plans_name="quick"))
    first = train_fold(NAME, "0", OPTIONS, device_name="cpu")
    assert first is not None
    caplog.set_level("INFO")
    second = train_fold(NAME, "0", replace(OPTIONS, pretrained=str(first.model)), "quick", device_name="cpu")
    assert second is not None
    assert second.model.name == "dual_pyramid__quick__full"
    assert f"From {first.model}" in caplog.text
    with pytest.raises(MissingFile):
        train_fold(NAME, "0", TrainingOptions(pretrained="nowhere"), "quick", device_name="cpu")
