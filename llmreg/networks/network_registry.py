"""The registry of networks: what planning, training, prediction and the command line ask about a network.

A network is one folder with a module that calls :func:`register`, here or in another package, which names that module
in the entry point group ``llmreg.networks``. The module must not import torch before :meth:`NetworkPlugin.build` is
called, since commands list the networks in their help.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, TypeAlias, TypeVar

from pydantic import PlainValidator, SerializeAsAny

from llmreg.errors import UnknownName, UserError
from llmreg.paths import is_word, llm_cache_folder
from llmreg.registry import Registry
from llmreg.settings import Settings

if TYPE_CHECKING:
    import torch

    from llmreg.devices import Machine
    from llmreg.networks.language_models.llm_settings import LLMSettings
    from llmreg.networks.registration_network import RegistrationNetwork

# The planner uses this network, and so do settings that do not name one.
DEFAULT_NETWORK = "llm_morph"
# These parts of the memory are the same for every network, and are fitted to benchmarks/training_memory.py: bytes of a
# trained parameter (weight, gradient and Adam's two moments, in float32); GiB of Python and PyTorch, or of a GPU's
# context; GiB of warping and Dice for a million voxels of the grid.
TRAINED_BYTES, BASE_GB, GRID_GB = 16, 0.5, 0.045


class NetworkSettings(Settings):
    """The base of a network's settings, which plans hold.

    A subclass narrows ``name`` to its own, ``name: Literal["toy"]``, without a default: digests of plans leave defaults
    out, and must tell networks apart.

    Attributes:
        name: of the network in the registry.
        field: what the network predicts. ``displacement``: the displacement itself. ``velocity``: a stationary
            velocity, whose flow over unit time is the displacement; the negated velocity leads back.
    """

    name: str
    field: Literal["displacement", "velocity"] = "displacement"


S = TypeVar("S", bound=NetworkSettings)


@dataclass(frozen=True)
class StepSize:
    """The size of a training step, on which its memory and time depend.

    Attributes:
        shape: (z, y, x) of the images that the network sees.
        grid_voxels: of the padded grid, on which the loss is computed.
        machine: whose device and precision it runs in.
        recompute: whether the finest level is recomputed in the backward pass (gradient checkpointing).
        pairs: in the step.
        loss_gb: memory (GiB) that the loss takes for a million voxels that the network sees.
    """

    shape: tuple[int, int, int]
    grid_voxels: int
    machine: Machine
    recompute: bool = False
    pairs: int = 1
    loss_gb: float = 0.0

    @property
    def megavoxels(self) -> float:
        """Millions of voxels that the network sees of each image."""
        return math.prod(self.shape) / 1e6


@dataclass(frozen=True)
class StepCost:
    """The network's own share of what a training step costs.

    Attributes:
        trained_parameters: how many there are.
        activations_gb: memory (GiB) of what the forward pass keeps for the backward pass, for one pair.
        core_seconds: time of one CPU core for one pair, forward and backward.
        frozen_bytes: memory of weights that are not trained.
        libraries_gb: memory (GiB) of the libraries that the network needs beside PyTorch.
    """

    trained_parameters: float
    activations_gb: float
    core_seconds: float
    frozen_bytes: float = 0.0
    libraries_gb: float = 0.0


def scale_cost(
    size: StepSize,
    trained_parameters: float,
    activations_gb: tuple[float, float],
    core_seconds: tuple[float, float],
    libraries_gb: float = 0.0,
) -> StepCost:
    """The cost of a step whose activations and time grow with the voxels.

    Args:
        size: of the step.
        trained_parameters: how many there are.
        activations_gb: memory (GiB) for a million voxels, in float32 and in bfloat16.
        core_seconds: time of one CPU core for a million voxels, in float32 and in bfloat16.
        libraries_gb: as in :class:`StepCost`.
    """
    precision = int(size.machine.bfloat16)
    return StepCost(
        trained_parameters,
        activations_gb[precision] * size.megavoxels,
        core_seconds[precision] * size.megavoxels,
        libraries_gb=libraries_gb,
    )


@dataclass(frozen=True)
class Variant:
    """A network with other settings than its default ones, as a row of a comparison.

    Attributes:
        title: what tables call it.
        changes: of the plans, as ``key=value``.
        summary: what the variant leaves out or does otherwise; a clause.
        in_tables: whether the table of all networks has it.
    """

    title: str
    changes: tuple[str, ...]
    summary: str = ""
    in_tables: bool = True


class NetworkPlugin(ABC, Generic[S]):
    """Everything that llmreg asks about one network.

    Attributes:
        name: of the network in settings, folders of results and options.
        title: what tables call it.
        summary: a line for the command line's help and the documentation.
        settings_type: the class of its settings.
        network: module and class of the network, ``package.module:Class``, which is imported when it is built.
        sizes: values of ``size_setting``, largest first, that the planner may lower it to where memory is short.
        coarsest: what :meth:`coarsest_stride` returns, where it is more than the stride.
        size_setting: the setting that makes the network smaller; empty where none does.
        variants: by name, networks with other settings that a comparison has as rows of their own.
        ablations: by name, what is left out; for the command line's help.
        llm_ablation: the ablation in which language models, and pairs of their layers, are compared; empty where they
            are compared in the network as it is.
        recipe: how the network's paper trains it: by section of the plans, the keys to change; among them the
            ``reasons``, whose key ``paper`` says where the settings are from. Empty where no such recipe is known.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    settings_type: type[S]
    network: ClassVar[str]
    coarsest: ClassVar[int] = 0
    size_setting: ClassVar[str] = ""
    sizes: ClassVar[tuple[int, ...]] = ()
    variants: ClassVar[Mapping[str, Variant]] = {}
    ablations: ClassVar[Mapping[str, str]] = {}
    llm_ablation: ClassVar[str] = ""
    recipe: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def build(self, settings: S, shape: Sequence[int], device: torch.device) -> RegistrationNetwork:
        """Build the network, by default by calling the class ``network`` with settings and shape.

        A network with a language model is given the :class:`llmreg.networks.language_models.loading.LoadedLayers` too.

        Args:
            settings: its settings.
            shape: (z, y, x) of the images, each a multiple of :meth:`stride`.
            device: where it will compute, which may decide the type of frozen weights; the caller moves it there.

        Raises:
            UserError: frozen weights are missing.
            ValueError: the shape does not fit.
        """
        build: Callable[..., RegistrationNetwork] = resolve_name(self.network)
        llm = self.language_model(settings)
        if llm is None:
            return build(settings, shape)
        from llmreg.networks.language_models.loading import load_layers

        return build(settings, shape, load_layers(llm, llm_cache_folder(), device))

    @abstractmethod
    def step_cost(self, settings: S, size: StepSize) -> StepCost:
        """Estimate the cost of a training step from measurements; the estimate decides what the planner chooses."""

    def default_settings(self) -> S:
        """The settings that a new training takes."""
        return self.settings_type.model_validate({"name": self.name})

    def as_published(self, settings: S) -> S:
        """The same settings without what the network's paper does not have."""
        return settings

    def stride(self, settings: S) -> int:
        """The number that each size of the images must be a multiple of."""
        return 1

    def coarsest_stride(self, settings: S) -> int:
        """How many voxels one voxel or token of the network's coarsest features spans along an axis."""
        return self.coarsest or self.stride(settings)

    def token_grid(self, settings: S, shape: Sequence[int]) -> tuple[int, ...] | None:
        """The grid of tokens that the network's weights depend on, for images of a shape; None without such a grid."""
        return None

    def shape_problem(self, settings: S, shape: Sequence[int], token_grid: Sequence[int]) -> str | None:
        """Why a configuration does not fit to the network, as a clause; None where it does.

        Args:
            settings: the network's settings.
            shape: the configuration's ``network_shape``.
            token_grid: the configuration's ``token_grid``.
        """
        stride = self.stride(settings)
        if any(size % stride for size in shape):
            return f"network_shape must be multiples of {stride}"
        tokens = self.token_grid(settings, shape)
        if tokens is not None and tuple(token_grid) != tokens:
            return f"token_grid must be {tokens} for that network_shape"
        return None

    def narrower(self, settings: S) -> list[S]:
        """The settings that need less memory than these, in the order in which the planner tries them."""
        return [
            settings.model_copy(update={self.size_setting: size})
            for size in self.sizes
            if size < getattr(settings, self.size_setting)
        ]

    def language_model(self, settings: S) -> LLMSettings | None:
        """The language model whose frozen layers the network has; None without any."""
        return None

    def fetch_weights(self, settings: S) -> S:
        """Make frozen weights available for training.

        Returns:
            The settings with the digest of these weights.

        Raises:
            UserError: the weights cannot be found, or are others than the settings say.
        """
        return settings

    def with_language_model(self, settings: S, source: str | None, layers: Sequence[str] | None) -> S:
        """The settings with another language model, whose layers are fetched.

        Args:
            settings: what else is kept.
            source: see :func:`llmreg.networks.language_models.reading.open_model`; the settings' own when None.
            layers: indices as text, or ``middle`` or ``deep`` alone; those that suit the source when None.

        Raises:
            UserError: the network has no language model, or there is no such model or layer.
        """
        raise UserError(f"The network {settings.name} has no language model that could be chosen.")

    def language_model_changes(self, settings: S, source: str, layers: Sequence[int]) -> tuple[str, ...]:
        """The changes of the plans, as ``key=value``, that take the layers of another language model.

        Raises:
            UserError: the network has no language model.
        """
        raise UserError(f"The network {settings.name} has no language model that could be chosen.")

    def without_digests(self, settings: S, changes: Sequence[str]) -> S:
        """The settings before changes of the plans, without the digests of frozen weights that these change."""
        return settings

    def ablation(self, settings: S, name: str) -> Variant:
        """The network without one of its parts.

        A network with a language model has the ablations ``layers-I-J``, pairs of that model's layers, and each with
        ``llm_ablation`` behind it, as in ``layers-0-1-no-lora``, for the comparison of such pairs.

        Raises:
            UserError: these settings cannot be changed so, or there is no such ablation.
        """
        raise UnknownName(f"ablation of {settings.name}", name, tuple(self.ablations))

    def applicable_ablations(self, settings: S) -> list[str]:
        """The names of the ablations that change a network with these settings."""

        def applies(name: str) -> bool:
            with suppress(UserError):
                return bool(self.ablation(settings, name))
            return False

        return [name for name in self.ablations if applies(name)]


NETWORKS: Registry[NetworkPlugin[NetworkSettings]] = Registry(
    "network",
    "llmreg.networks",
    [
        f"llmreg.networks.{folder}.plugin"
        for folder in ("llm_morph", "voxelmorph", "dual_pyramid", "transmorph", "mambamorph")
    ],
)


def register(plugin: NetworkPlugin[Any]) -> None:
    """Make a network known.

    Raises:
        ValueError: the plug-in lacks something that every network has, or its name is taken or no name of a folder.
    """
    needed = {"name": str, "title": str, "summary": str, "settings_type": type}
    if type(plugin).build is NetworkPlugin.build:
        needed["network"] = str
    missing = [key for key, kind in needed.items() if not isinstance(getattr(plugin, key, None), kind)]
    if missing:
        raise ValueError(f"{type(plugin).__name__} does not say its {', '.join(missing)}")
    if not is_word(plugin.name):
        raise ValueError(f"'{plugin.name}' is no name: use letters and digits, with single '_', '-' or '.' between")
    NETWORKS.register(plugin.name, plugin)


def plugin_of(settings: NetworkSettings) -> NetworkPlugin[Any]:
    """The plug-in of the network that settings are of."""
    return NETWORKS.get(settings.name)


def training_memory_gb(settings: NetworkSettings, size: StepSize) -> float:
    """Peak memory (GiB) of training."""
    cost = plugin_of(settings).step_cost(settings, size)
    loss = GRID_GB * size.grid_voxels / 1e6 + size.loss_gb * size.megavoxels
    weights = TRAINED_BYTES * cost.trained_parameters + cost.frozen_bytes
    return BASE_GB + cost.libraries_gb + weights / 2**30 + size.pairs * (cost.activations_gb + loss)


def step_seconds(settings: NetworkSettings, size: StepSize) -> float:
    """Rough time of a training step on the machine's CPU."""
    return size.pairs * plugin_of(settings).step_cost(settings, size).core_seconds / size.machine.cores


def all_ablations() -> dict[str, str]:
    """The summaries of the ablations of all networks, by name."""
    return {name: summary for plugin in NETWORKS.parts.values() for name, summary in plugin.ablations.items()}


def network_settings(name: str, **changes: Any) -> NetworkSettings:
    """The settings of a network, with their default values but for the changes.

    Raises:
        UnknownName: there is no network of that name.
        ValidationError: the network has no such settings.
    """
    return NETWORKS.get(name).settings_type.model_validate({"name": name, **changes})


def default_settings(name: str = DEFAULT_NETWORK) -> NetworkSettings:
    """The settings that a new training of a network takes. Raises UnknownName when there is none of that name."""
    return NETWORKS.get(name).default_settings()


def _parse_settings(content: Any) -> NetworkSettings:
    if isinstance(content, NetworkSettings):
        return content
    if not isinstance(content, dict):
        raise ValueError("a network's settings are keys and values")
    return network_settings(**{"name": DEFAULT_NETWORK, **content})


# The type of a field that holds the settings of any registered network.
AnyNetworkSettings: TypeAlias = Annotated[SerializeAsAny[NetworkSettings], PlainValidator(_parse_settings)]
