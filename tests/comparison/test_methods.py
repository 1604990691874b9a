"""Which methods a table has, from the registries of networks and classical programs."""

from __future__ import annotations

import pytest

from llmreg.comparison import methods as module
from llmreg.comparison.methods import GROUPS, Method, find_method, first_layers, list_group, select_methods
from llmreg.errors import BadArgument, UnknownName, UserError
from llmreg.networks.language_models import loading
from llmreg.networks.network_registry import NETWORKS, network_settings

SETTINGS = network_settings("llm_morph")


def names(*arguments, **options) -> dict[str, list[str]]:
    return {table: [method.name for method in row] for table, row in select_methods(*arguments, **options).items()}


def test_groups_keep_their_tables_and_other_names_share_one() -> None:
    tables = names(["table2", "convexadam", "llm_morph", "convexadam"], SETTINGS)
    assert tables["comparison"] == ["convexadam", "llm_morph"]
    assert tables["table2"][0] == "initial"
    assert tables["table2"][-1] == "llm_morph"
    assert set(tables["table2"][1:-1]) == {
        "no-blocks",
        "vit",
        "one-block",
        "no-lora",
        "random-weights",
        "adapters-only",
    }


def test_an_ablation_that_changes_nothing_is_not_a_row() -> None:
    """Without cost volumes, LLM-Morph and its ablation are one network."""
    assert "no-cost-volume" not in names(["table2"], SETTINGS)["table2"]
    assert "no-cost-volume" in names(["table2"], network_settings("llm_morph", cost_volume=1))["table2"]
    with pytest.raises(UserError):
        select_methods(["llm_morph", "no-cost-volume"], SETTINGS)


def test_the_first_table_has_every_registered_network() -> None:
    rows = list_group("table1", SETTINGS)
    assert set(NETWORKS.names) <= set(rows)
    assert rows[-2:] == ["llm_morph", "llm_morph+refine"]
    assert rows.index("voxelmorph-small") < rows.index("voxelmorph") < rows.index("llm_morph")
    assert "transmorph-3" not in rows
    assert find_method("transmorph-3", SETTINGS).changes == ("network.stages=3",)


def test_plans_of_any_network_are_compared() -> None:
    settings = network_settings("transmorph")
    rows = list_group("table1", settings)
    assert rows[-2:] == ["transmorph", "transmorph+refine"]
    assert find_method("transmorph", settings).network is None
    assert find_method("llm_morph", settings).network == "llm_morph"
    assert list_group("table2", settings) == ["initial", "transmorph"]
    for name in ("table3", "figure4", "llm=/a/7b"):
        with pytest.raises(BadArgument) as error:
            select_methods([name], settings)
        assert error.value.argument == "plans"


def test_pairs_of_layers_are_where_the_paper_took_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert first_layers(32) == [0, 7, 15, 23, 30]
    assert first_layers(30)[0] == 0
    assert first_layers(30)[-1] == 28
    assert first_layers(2) == [0]
    monkeypatch.setattr(module, "count_layers", lambda network: 32)
    (table,) = select_methods(["figure4"], SETTINGS).values()
    assert [method.name for method in table[1:]] == [f"layers-{k}-{k + 1}-no-lora" for k in (0, 7, 15, 23, 30)]
    assert set(table[1].changes) == {"network.llm.layers=[0,1]", "network.llm.lora=null"}


@pytest.fixture
def middle_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model has 28 layers."""
    monkeypatch.setattr(
        loading, "select_layers", lambda source, layers, llm: llm.model_copy(update={"layers": (13, 14)})
    )


def test_language_models_are_compared_without_lora_under_short_names(middle_layers: None) -> None:
    (table,) = select_methods(["table3"], SETTINGS, ["/models/Llama-3-8B/", "Qwen/Qwen2-7B"]).values()
    assert [m.name for m in table] == ["initial", "no-lora", "llm-llama-3-8b-no-lora", "llm-qwen2-7b-no-lora"]
    expected = ("network.llm.source=Qwen/Qwen2-7B", "network.llm.layers=[13,14]", "network.llm.lora=null")
    assert table[-1].changes == expected
    assert find_method("llm=Qwen/Qwen2-7B+refine", SETTINGS).name == "llm-qwen2-7b-no-lora+refine"


def test_language_models_that_cannot_be_told_apart_or_belong_to_no_table_are_refused(middle_layers: None) -> None:
    for tables, models in ((["table3"], ["/a/7b", "/b/7b"]), (["table1"], ["/a/7b"])):
        with pytest.raises(BadArgument) as error:
            select_methods(tables, SETTINGS, models)
        assert error.value.argument == "llms"


@pytest.mark.parametrize("group", GROUPS)
def test_every_method_of_a_group_is_known(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "count_layers", lambda network: 30)
    settings = network_settings("llm_morph", cost_volume=1)
    for name in list_group(group, settings):
        assert find_method(name, settings).name == name


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownName) as error:
        select_methods(["demons"], SETTINGS)
    assert {"table1", "convexadam", "vit", "voxelmorph"} <= set(error.value.known)


def test_a_refined_method_is_the_same_training_predicted_otherwise() -> None:
    plain, refined = (find_method(name, SETTINGS) for name in ("no-lora", "no-lora+refine"))
    assert isinstance(plain, Method)
    assert (refined.changes, refined.training_name) == (plain.changes, plain.training_name)
    assert (plain.refinement_steps, refined.refinement_steps) == (0, 50)
    with pytest.raises(UnknownName):
        find_method("ants+refine", SETTINGS)
