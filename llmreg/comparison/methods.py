"""The methods that are compared: what is trained and how, or which program registers instead."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llmreg.comparison.benchmark_settings import count_layers, language_model_of
from llmreg.comparison.classical_methods import CLASSICAL
from llmreg.errors import BadArgument, UnknownName
from llmreg.networks.network_registry import DEFAULT_NETWORK, NETWORKS, NetworkSettings, plugin_of

INITIAL = "initial"
# The name of a learned method whose fields are refined ends with this.
REFINED = "+refine"
GROUPS = ("table1", "table2", "table3", "figure4")


@dataclass(frozen=True)
class Method:
    """One row of a table.

    Attributes:
        name: identifies the method, also in commands and folders.
        title: its name in tables.
        kind: whether it is trained, another program, or no registration at all.
        network: name of the network, with its default settings unless it is the plans' own; None for the plans' own.
        changes: of the plans, ``key=value``.
        refinement_steps: by which predicted fields are refined.
    """

    name: str
    title: str
    kind: Literal["initial", "classical", "learned"]
    network: str | None = None
    changes: tuple[str, ...] = ()
    refinement_steps: int = 0

    @property
    def training_name(self) -> str:
        """Name of the training, which a method and its refined variant share."""
        return self.name.removesuffix(REFINED)


def list_methods(network: str = DEFAULT_NETWORK) -> dict[str, Method]:
    """The methods that are the same for all plans, by name: programs, networks and their variants.

    Args:
        network: name of the plans' network, which comes last.
    """
    methods = {INITIAL: Method(INITIAL, "Initial", "initial")}
    methods |= {name: Method(name, program.title, "classical") for name, program in CLASSICAL.items()}
    for name, plugin in sorted(NETWORKS.parts.items(), key=lambda part: part[0] == network):
        for key, variant in plugin.variants.items():
            methods[key] = Method(key, variant.title, "learned", name, variant.changes)
        methods[name] = Method(name, plugin.title, "learned", None if name == network else name)
    return methods


def list_group(group: str, settings: NetworkSettings, llms: Sequence[str] = ()) -> list[str]:
    """The names of a group's methods, for the plans' network and, in ``table3``, other language models."""
    network, plugin = settings.name, plugin_of(settings)
    if group == "table1":
        hidden = {k for p in NETWORKS.parts.values() for k, variant in p.variants.items() if not variant.in_tables}
        return [*(name for name in list_methods(network) if name not in hidden), network + REFINED]
    if group == "table2":
        return [INITIAL, *plugin.applicable_ablations(settings), network]
    llm = language_model_of(settings)
    if group == "table3":
        return [INITIAL, plugin.llm_ablation or network, *(f"llm={source}" for source in llms)]
    ending = f"-{plugin.llm_ablation}" if plugin.llm_ablation else ""
    return [INITIAL, *(f"layers-{first}-{first + 1}{ending}" for first in first_layers(count_layers(llm)))]


def select_methods(
    names: Sequence[str], settings: NetworkSettings, llms: Sequence[str] = ()
) -> dict[str, list[Method]]:
    """List methods by table: those of each group that is named, and "comparison" for methods that are named singly.

    Args:
        names: of methods or of :data:`GROUPS`.
        settings: the plans' network, which ablations change.
        llms: other language models for ``table3``, compared with the network's ``llm_ablation``.

    Raises:
        UnknownName: a name is not that of a method or group.
        BadArgument: two methods would have one name, ``llms`` are given without ``table3``, or the network has no
            language model to compare.
    """
    if llms and "table3" not in names:
        raise BadArgument("llms", "Language models are compared in table3: name it among the methods.")
    tables: dict[str, list[str]] = {}
    for name in names:
        if name in GROUPS:
            tables[name] = list_group(name, settings, llms)
        else:
            tables.setdefault("comparison", []).append(name)
    methods = {
        table: [find_method(name, settings) for name in dict.fromkeys(names_of_table)]
        for table, names_of_table in tables.items()
    }
    by_name: dict[str, Method] = {}
    for row in methods.values():
        for method in row:
            if by_name.setdefault(method.name, method) != method:
                raise BadArgument(
                    "llms", f"Two methods would be called {method.name}: give one of the models another folder name."
                )
    return methods


def first_layers(layers: int) -> list[int]:
    """List the first layer of each pair of neighbours, from the first to the last of a model with ``layers`` layers."""
    # Of 32 layers, the paper's figure 4 takes 0/1, 7/8, 15/16, 23/24 and 30/31.
    return sorted({min(round(depth / 31 * (layers - 1)), layers - 2) for depth in (0, 7, 15, 23, 30)})


def find_method(name: str, settings: NetworkSettings) -> Method:
    """Find a method by its name. Raises UnknownName when there is none."""
    methods, plugin = list_methods(settings.name), plugin_of(settings)
    if name in methods:
        return methods[name]
    if name.endswith(REFINED) and (base := find_method(name.removesuffix(REFINED), settings)).kind == "learned":
        # See documentation/refinement.md for the gain by steps.
        return replace(base, name=base.name + REFINED, title=f"{base.title}, refined", refinement_steps=50)
    if name.startswith("llm="):
        return _with_language_model(name.removeprefix("llm="), settings)
    try:
        ablation = plugin.ablation(settings, name)
    except UnknownName:
        raise UnknownName("method", name, [*GROUPS, *methods, *plugin.ablations, "llm=SOURCE"]) from None
    # Table 3 compares this ablation with other language models.
    llm = plugin.language_model(settings) if name == plugin.llm_ablation else None
    title = ablation.title + (f" ({_short_name(llm.source)})" if llm else "")
    return Method(name, title, "learned", None, ablation.changes)


def _with_language_model(source: str, settings: NetworkSettings) -> Method:
    # Imported here, because transformers takes seconds to import.
    from llmreg.networks.language_models.loading import select_layers

    plugin, name = plugin_of(settings), _short_name(source)
    layers = select_layers(source, None, language_model_of(settings)).layers
    changes = plugin.language_model_changes(settings, source, layers)
    if plugin.llm_ablation:
        changes += plugin.ablation(settings, plugin.llm_ablation).changes
    return Method("-".join(filter(None, ("llm", name, plugin.llm_ablation))), name, "learned", None, changes)


def _short_name(source: str) -> str:
    """A language model's name, fit for a folder's name: the last part of a path or a hub id."""
    return re.sub(r"[^A-Za-z0-9]+", "-", source.rstrip("/").rsplit("/", 1)[-1]).strip("-").lower()
