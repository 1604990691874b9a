from __future__ import annotations

import pytest

from llmreg.comparison import methods
from llmreg.comparison.methods import chosen, layer_pairs, method
from llmreg.errors import UserError
from llmreg.networks.config import LLMMorphSettings
from llmreg.networks.language_models import fetching
from llmreg.networks.llm_morph.ablations import ABLATIONS

SETTINGS = LLMMorphSettings()


def names(**tables: list[methods.Method]) -> dict[str, list[str]]:
    return {table: [one.name for one in own] for table, own in tables.items()}


def test_groups_keep_their_tables_and_other_names_are_one() -> None:
    found = names(**chosen(["table2", "convexadam", "llm_morph", "convexadam"], SETTINGS, 30))
    assert found["comparison"] == ["convexadam", "llm_morph"]
    assert found["table2"][0] == "initial"
    assert found["table2"][-1] == "llm_morph"
    assert set(found["table2"]) >= set(ABLATIONS) - {"layers-I-J", "no-cost-volume"}
    # Where LLM-Morph has no cost volumes, it would be there twice.
    assert "no-cost-volume" not in found["table2"]
    ours = names(**chosen(["table2"], LLMMorphSettings(cost_volume=1), 30))
    assert set(ours["table2"]) == {*found["table2"], "no-cost-volume"}
    with pytest.raises(UserError, match="no cost volumes that could be taken away"):
        chosen(["llm_morph", "no-cost-volume"], SETTINGS, 30)


def test_pairs_of_layers_are_where_the_paper_took_them() -> None:
    assert layer_pairs(32) == [0, 7, 15, 23, 30]
    assert layer_pairs(30)[0] == 0
    assert layer_pairs(30)[-1] == 28
    assert layer_pairs(2) == [0]
    (table,) = chosen(["figure4"], SETTINGS, 32).values()
    assert [one.name for one in table[1:]] == [f"layers-{k}-{k + 1}-no-lora" for k in (0, 7, 15, 23, 30)]
    assert set(table[1].changes) == {"network.llm.layers=[0,1]", "network.llm.lora=null"}


@pytest.fixture
def middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model has 28 layers."""
    monkeypatch.setattr(
        fetching, "named_layers", lambda source, layers, llm: llm.model_copy(update={"layers": (13, 14)})
    )


def test_language_models_are_compared_without_lora_under_short_names(middle: None) -> None:
    (table,) = chosen(["table3"], SETTINGS, 0, ["/models/Llama-3-8B/", "Qwen/Qwen2-7B"]).values()
    assert [one.name for one in table] == ["initial", "no-lora", "llm-llama-3-8b-no-lora", "llm-qwen2-7b-no-lora"]
    expected = ("network.llm.source=Qwen/Qwen2-7B", "network.llm.layers=[13,14]", "network.llm.lora=null")
    assert table[-1].changes == expected
    assert method("llm=Qwen/Qwen2-7B+refine", SETTINGS).name == "llm-qwen2-7b-no-lora+refine"


def test_language_models_that_cannot_be_told_apart_or_belong_to_no_table_are_refused(middle: None) -> None:
    with pytest.raises(UserError, match="Two methods would be called llm-7b-no-lora"):
        chosen(["table3"], SETTINGS, 0, ["/a/7b", "/b/7b"])
    with pytest.raises(UserError, match="belong to table3"):
        chosen(["table1"], SETTINGS, 0, ["/a/7b"])


@pytest.mark.parametrize("name", [name for group in methods.GROUPS.values() for name in group])
def test_every_method_of_a_group_is_known(name: str) -> None:
    assert method(name, LLMMorphSettings(cost_volume=1)).name == name


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"no method 'demons': choose among table1, .*convexadam.*vit"):
        chosen(["demons"], SETTINGS, 0)


def test_a_refined_method_is_the_same_training_predicted_otherwise() -> None:
    plain, refined = (method(name, SETTINGS) for name in ("no-lora", "no-lora+refine"))
    assert (refined.changes, refined.trained_as) == (plain.changes, plain.trained_as)
    assert refined.flags == ("--refine", "50")
    with pytest.raises(UserError, match="no method"):
        method("ants+refine", SETTINGS)
