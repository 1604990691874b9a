from __future__ import annotations

from pathlib import Path

import pytest
from tiny_fold import make_plans

from llmreg.errors import BadName, NotPrepared, OtherPlans, UnknownName, UnnamedChanges
from llmreg.plans.plans import Plans, write_plans
from llmreg.training.plans_choice import PlansChoice, choose_plans


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_plans(tmp_path / "plans.json", make_plans(reasons={"network.width": "it is small", "spacing": "theirs"}))
    return tmp_path


def test_plans_are_read_by_their_name(folder: Path) -> None:
    assert choose_plans(folder, PlansChoice()).plans_name == "default"
    with pytest.raises(NotPrepared) as caught:
        choose_plans(folder, PlansChoice("paper"))
    assert (caught.value.step, caught.value.plans) == ("plan", "paper")


def test_changed_plans_have_a_name_and_nothing_is_written(folder: Path) -> None:
    before = sorted(folder.iterdir())
    changed = choose_plans(folder, PlansChoice(changes=["loss.smoothness=0.3"], name="smooth"))
    assert (changed.plans_name, changed.loss.smoothness) == ("smooth", 0.3)
    assert sorted(folder.iterdir()) == before
    # The same changes may be asked for again, others need another name.
    write_plans(folder / "plans_smooth.json", changed)
    assert choose_plans(folder, PlansChoice(changes=["loss.smoothness=0.3"], name="smooth")) == changed
    with pytest.raises(OtherPlans) as caught:
        choose_plans(folder, PlansChoice(changes=["loss.smoothness=0.4"], name="smooth"))
    assert caught.value.folder == folder / "plans_smooth.json"


@pytest.mark.parametrize(
    "choice", [PlansChoice(changes=["loss.dice=2"]), PlansChoice(name="smooth"), PlansChoice(changes=[], name="smooth")]
)
def test_changes_and_names_belong_together(folder: Path, choice: PlansChoice) -> None:
    with pytest.raises(UnnamedChanges) as caught:
        choose_plans(folder, choice)
    assert caught.value.name == choice.name


@pytest.mark.parametrize("name", ["two__parts", "a/b", "-x", "ends_"])
def test_names_must_fit_into_that_of_a_folder(folder: Path, name: str) -> None:
    with pytest.raises(BadName) as caught:
        choose_plans(folder, PlansChoice(changes=["loss.dice=2"], name=name))
    assert caught.value.name == name


def test_another_network_has_its_default_settings_and_the_plans_keep_their_name(folder: Path) -> None:
    plans = choose_plans(folder, PlansChoice(network="voxelmorph"))
    assert (plans.plans_name, plans.network.name) == ("default", "voxelmorph")
    assert plans.reasons == {"spacing": "theirs"}
    named = choose_plans(folder, PlansChoice(name="copy", network="voxelmorph"))
    assert named.plans_name == "copy"
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
    changed = ablate(llm_folder, changes=["network.width=4"])
    assert (changed.network.width, changed.network.llm.lora) == (4, None)
