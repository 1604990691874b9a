"""Plans round trip through their file, name what is wrong in it, and have digests of what matters."""

import json

import pytest

from llmreg.errors import BadAssignment, BadPlans, NotPrepared, UserError
from llmreg.networks.network_registry import NETWORKS, network_settings
from llmreg.plans.plans import Plans, find_plans, override, parse_plans, plans_path, read_plans, write_plans


def test_plans_round_trip_through_their_file(plans, tmp_path):
    write_plans(tmp_path / "plans.json", plans)
    assert read_plans(tmp_path / "plans.json") == plans


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("spacing",), [2, 2], "spacing"),
        (("training", "learning_rate"), "fast", "training.learning_rate"),
        (("network", "llm", "layer"), 3, "network.llm.layer"),
        (("format_version",), 9, "format_version"),
        (("augmentation", "scale"), [1.2, 0.8], "augmentation.scale"),
        (("augmentation", "gamma"), [-1, 0], "augmentation.gamma"),
        (("normalization", "0", "lower"), 99, "normalization.0"),
        (("normalization", "0", "upper"), 101, "normalization.0"),
        (("loss", "dice"), 0, "loss"),
        (("loss", "similarity_kind"), "ssd", "loss.similarity_kind"),
        (("configurations", "half", "padded_size"), [80, 96, 96], "configurations.half"),
        (("configurations", "half", "network_shape"), [48, 48, 64], "configurations.half"),
        (("configurations", "half", "token_length"), 28, "configurations.half"),
        (("size",), [80, 97, 80], "configurations.full"),
        (("default_configuration",), "quarter", "default_configuration"),
    ],
)
def test_a_wrong_key_is_refused_with_its_path(plans, tmp_path, path, value, named):
    content = plans.model_dump(mode="json")
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / "plans.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=named.replace(".", r"\.")):
        read_plans(tmp_path / "plans.json")


def test_a_key_that_is_left_out_changes_no_digest(plans, tmp_path):
    content = plans.model_dump(mode="json")
    del content["augmentation"]["noise"], content["network"]["llm"], content["training"]["seed"]
    (tmp_path / "plans.json").write_text(json.dumps(content))
    pruned = read_plans(tmp_path / "plans.json")
    write_plans(tmp_path / "copy.json", pruned)
    assert pruned.digest() == read_plans(tmp_path / "copy.json").digest() == plans.digest()


def test_computing_twice_makes_no_other_model(plans):
    recomputing = override(plans, ["configurations.half.recompute=true"], "default")
    assert recomputing.configurations["half"].recompute
    assert recomputing.digest() == plans.digest()
    assert recomputing.digest("half") == plans.digest("half")


def add_configuration(plans: Plans, name: str) -> Plans:
    """Return the plans with a configuration of the user's own: half resolution, padded further."""
    content = plans.model_dump(mode="json")
    content["configurations"][name] = content["configurations"]["half"] | {
        "padded_size": [96, 96, 128],
        "network_shape": [48, 48, 64],
        "token_grid": [3, 3, 4],
        "token_length": 36,
    }
    return parse_plans(content, "plans.json")


def test_a_model_is_of_one_configuration_and_others_may_come_and_go(plans):
    extended = add_configuration(plans, "my-own.2")
    assert extended.configuration("my-own.2").token_length == 36
    assert extended.digest("half") == plans.digest("half")
    assert extended.digest() != plans.digest()
    assert len({extended.digest(name) for name in extended.configurations}) == 3
    resized = override(
        plans, ["configurations.half=" + extended.configuration("my-own.2").model_dump_json()], "default"
    )
    assert resized.digest("half") != plans.digest("half")
    assert resized.digest("full") == plans.digest("full")
    for other in ({"reasons": {"grid": "so"}}, {"default_configuration": "full"}):
        assert plans.model_copy(update=other).digest() == plans.digest()


@pytest.mark.parametrize("name", ["", "a__b", "_a", "a_", "a/b", "../a", "a b"])
def test_a_name_that_no_folder_can_have_is_refused(plans, name):
    with pytest.raises(UserError, match="configurations"):
        add_configuration(plans, name)


@pytest.mark.parametrize("name", NETWORKS.names)
def test_plans_of_every_network_round_trip_and_have_a_digest_of_their_own(plans, tmp_path, name):
    plans_by_network = {
        other: plans.model_copy(update={"network": network_settings(other)}) for other in NETWORKS.names
    }
    write_plans(tmp_path / "plans.json", plans_by_network[name])
    assert read_plans(tmp_path / "plans.json") == plans_by_network[name]
    assert [
        other for other in NETWORKS.names if plans_by_network[other].digest() == plans_by_network[name].digest()
    ] == [name]


def test_plans_that_do_not_name_their_network_are_llm_morphs(plans):
    content = plans.model_dump(mode="json")
    del content["network"]["name"]
    assert parse_plans(content, "plans.json") == plans
    assert parse_plans({key: value for key, value in content.items() if key != "network"}, "plans.json") == plans


def test_only_configurations_that_exist_are_given(plans):
    assert plans.configuration("half").downsampling == 2
    with pytest.raises(UserError, match="quarter"):
        plans.configuration("quarter")
    with pytest.raises(UserError, match="plans"):
        parse_plans({"nonsense": 1}, "plans.json")


def test_plans_are_found_by_their_name(plans, tmp_path):
    assert (plans_path(tmp_path, "default").name, plans_path(tmp_path, "mine").name) == (
        "plans.json",
        "plans_mine.json",
    )
    with pytest.raises(NotPrepared) as missing:
        find_plans(tmp_path, "mine")
    assert (missing.value.step, missing.value.dataset) == ("plan", tmp_path.name)
    write_plans(tmp_path / "plans.json", plans)
    assert find_plans(tmp_path, "default") == plans
    write_plans(tmp_path / "plans_mine.json", plans)
    with pytest.raises(BadPlans) as refusal:
        find_plans(tmp_path, "mine")
    assert refusal.value.key == "plans_name"


def test_other_layers_of_the_language_model_drop_the_digest_of_these(plans):
    pinned = override(plans, ['network.llm.sha256="abc"'], "pinned")
    assert pinned.network.llm.sha256 == "abc"
    assert override(pinned, ["network.llm.attention=causal"], "x").network.llm.sha256 == "abc"
    for other in ("network.llm.layers=[0,1]", "network.llm.source=llm", "network.llm.weights=random"):
        assert override(pinned, [other], "x").network.llm.sha256 is None


def test_overrides_make_a_named_copy_with_another_digest(plans):
    changed = override(plans, ["loss.smoothness=0.3", "network.llm.rotary=1d"], "smooth")
    assert (changed.loss.smoothness, changed.network.llm.rotary, changed.plans_name) == (0.3, "1d", "smooth")
    assert changed.digest() != plans.digest()
    # The volumes do not depend on it, so they are shared.
    assert changed.volumes_digest() == plans.volumes_digest()
    assert override(plans, ["spacing=[3,3,3]"], "coarse").volumes_digest() != plans.volumes_digest()


def test_a_baselines_keys_are_set_and_refused_by_their_path(plans):
    pyramid = plans.model_copy(update={"network": network_settings("dual_pyramid")})
    assert override(pyramid, ["network.width=4"], "x").network == network_settings("dual_pyramid", width=4)
    for wrong, named in (
        ("network.width=0", "network.width"),
        ("network.llm.layers=[1]", "network.llm.layers"),
        ("network.blocks=vit", "network.blocks"),
        ("network.name=unet", "network: There is no network 'unet'"),
    ):
        with pytest.raises(UserError, match=named.replace(".", r"\.")):
            override(pyramid, [wrong], "x")


@pytest.mark.parametrize("wrong", ["loss.smoothness", "los.smoothness=1", "loss.dice.more=1", "plans_name=y"])
def test_an_assignment_that_cannot_be_made_is_refused(plans, wrong):
    with pytest.raises(BadAssignment) as refusal:
        override(plans, [wrong], "x")
    assert refusal.value.assignment == wrong


@pytest.mark.parametrize(
    ("wrong", "key"), [("loss.smoothness=-1", "loss.smoothness"), ("loss.smooth=1", "loss.smooth")]
)
def test_a_value_or_key_that_plans_do_not_have_is_refused(plans, wrong, key):
    with pytest.raises(BadPlans) as refusal:
        override(plans, [wrong], "x")
    assert refusal.value.key == key


def test_values_that_are_not_json_are_text(plans):
    assert override(plans, ["training.schedule=constant"], "x").training.schedule == "constant"
    assert override(plans, ['training.schedule="constant"'], "x").training.schedule == "constant"
