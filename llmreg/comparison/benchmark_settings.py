"""The settings that all methods of a comparison share."""

from dataclasses import dataclass
from typing import Any

from llmreg.errors import BadArgument
from llmreg.networks.language_models.llm_settings import LLMSettings
from llmreg.networks.network_registry import NetworkSettings, plugin_of
from llmreg.paths import preprocessed_dataset
from llmreg.plans.plans import Plans, find_plans

# The fold whose pairs are the dataset's test pairs.
TEST = "test"


@dataclass(frozen=True)
class BenchmarkSettings:
    """On what methods are compared, and how long each may take.

    Attributes:
        dataset: id or whole name.
        folds: whose validation pairs count; ``test`` for the dataset's test pairs (its validation pairs where these are
            not annotated), predicted by a training on all other cases.
        plans: name of the plans that all learned methods start from.
        configuration: ``full`` or ``half``; the plans' default when None.
        minutes: of training for each learned method and fold; the plans' number of epochs when None.
        peer_seconds: how long a classical method may take for a pair.
        device: where to train and predict.
        workers: processes that load and augment.
    """

    dataset: str
    folds: tuple[str, ...] = ("0",)
    plans: str = "default"
    configuration: str | None = None
    minutes: float | None = None
    peer_seconds: float = 900.0
    device: str | None = None
    workers: int = 1


def load_plans(settings: BenchmarkSettings) -> Plans:
    """Load the plans that all learned methods start from."""
    return find_plans(preprocessed_dataset(settings.dataset), settings.plans)


def identity(settings: BenchmarkSettings) -> dict[str, Any]:
    """What shapes methods, and must be the same for all methods of a comparison, as JSON."""
    plans = load_plans(settings)
    return {
        "dataset": plans.dataset_name,
        "plans": settings.plans,
        "digest": plans.digest(),
        "configuration": settings.configuration or plans.default_configuration,
        "minutes": settings.minutes,
    }


def language_model_of(network: NetworkSettings) -> LLMSettings:
    """The language model of a network. Raises BadArgument when it has none."""
    llm = plugin_of(network).language_model(network)
    if llm is None:
        raise BadArgument("plans", f"The network {network.name} of the plans has no language model.")
    return llm


def count_layers(llm: LLMSettings) -> int:
    """Count the layers of the language model from which settings take some."""
    from llmreg.networks.language_models.families import build_config
    from llmreg.networks.language_models.reading import open_model

    model = open_model(llm.source)
    return int(build_config(model.config, model.family, model.where).num_hidden_layers)
