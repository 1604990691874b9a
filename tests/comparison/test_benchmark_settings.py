from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_fold import make_plans
from tiny_models import save_random_model

from llmreg.comparison.benchmark_settings import (
    BenchmarkSettings,
    count_layers,
    identity,
    language_model_of,
    load_plans,
)
from llmreg.errors import BadArgument
from llmreg.networks.network_registry import network_settings
from llmreg.plans.plans import plans_path, write_plans


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BenchmarkSettings:
    """A dataset of which only the plans of a small network exist."""
    monkeypatch.setenv("llmreg_home", str(tmp_path))
    for kind in ("raw", "preprocessed"):
        (tmp_path / kind / "Dataset001_X").mkdir(parents=True)
    write_plans(plans_path(tmp_path / "preprocessed" / "Dataset001_X", "default"), make_plans())
    return BenchmarkSettings("1")


def test_a_comparison_is_identified_by_its_plans_and_minutes(settings: BenchmarkSettings) -> None:
    plans = load_plans(settings)
    assert identity(settings) == {
        "dataset": "Dataset001_X",
        "plans": "default",
        "digest": plans.digest(),
        "configuration": plans.default_configuration,
        "minutes": None,
    }
    for change in ({"minutes": 3.0}, {"configuration": "other"}):
        assert identity(replace(settings, **change)) != identity(settings)
    assert identity(replace(settings, device="cpu", workers=7, peer_seconds=1.0)) == identity(settings)


def test_layers_are_those_of_the_language_model(tmp_path: Path) -> None:
    source = save_random_model(tmp_path / "model", "llama")
    network = network_settings("llm_morph", llm={"source": str(source), "layers": (1, 2)})
    assert count_layers(language_model_of(network)) == 4


def test_a_network_without_a_language_model_is_refused(settings: BenchmarkSettings) -> None:
    with pytest.raises(BadArgument) as error:
        language_model_of(load_plans(settings).network)
    assert error.value.argument == "plans"
