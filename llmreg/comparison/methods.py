"""The methods that are compared: what is trained and how, or which program registers instead."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llmreg.comparison.classical_methods import CLASSICAL
from llmreg.errors import BadArgument, UnknownName
from llmreg.networks.registry import DEFAULT_NETWORK, NETWORKS, NetworkSettings, plugin_of

Kind = Literal["initial", "classical", "learned"]

INITIAL, OURS = "initial", DEFAULT_NETWORK
# Ends the name of a learned method whose fields are refined.
REFINED = "+refine"
# See documentation/refinement.md for the gain by steps.
_REFINEMENT_STEPS = 50
_WITHOUT_LORA = "no-lora"
_NO_LORA = "network.llm.lora=null"


@dataclass(frozen=True)
class Method:
    """One row of a table.

    Attributes:
        name: identifies the method, also in commands and folders.
        title: its name in tables.
        kind: whether it is trained, another program, or no registration at all.
        network: name of a baseline's network; None for the plans' own.
        changes: of the plans, ``key=value``.
        refinement_steps: by which predicted fields are refined.
    """

    name: str
    title: str
    kind: Kind
    network: str | None = None
    changes: tuple[str, ...] = ()
    refinement_steps: int = 0

    @property
    def trained_as(self) -> str:
        """Name of the training, which a method and its refined variant share."""
        return self.name.removesuffix(REFINED)


# Of 32 layers, the paper's figure 4 takes 0/1, 7/8, 15/16, 23/24 and 30/31.
_DEPTHS = (0.0, 7 / 31, 15 / 31, 23 / 31, 30 / 31)
GROUPS = ("table1", "table2", "table3", "figure4")


def list_networks() -> dict[str, Method]:
    """The registered networks and their variants as methods by name; the default network is last."""
    methods: dict[str, Method] = {}
    for name, plugin in sorted(NETWORKS.parts.items(), key=lambda part: part[0] == OURS):
        # The plans' own settings of the network that they are made for are kept.
        network = None if name == OURS else name
        for key, variant in plugin.variants.items():
            methods[key] = Method(key, variant.title, "learned", name, variant.changes)
        methods[name] = Method(name, plugin.title, "learned", network)
    return methods


def list_group(group: str, settings: NetworkSettings) -> list[str]:
    """The names of a group's methods, for the plans' network."""
    plugin = plugin_of(settings)
    if group == "table1":
        hidden = {k for p in NETWORKS.parts.values() for k, variant in p.variants.items() if not variant.in_tables}
        return [INITIAL, *CLASSICAL, *(name for name in list_networks() if name not in hidden), OURS + REFINED]
    if group == "table2":
        return [INITIAL, *plugin.applicable_ablations(settings), OURS]
    return [INITIAL, _WITHOUT_LORA] if group == "table3" else [INITIAL]


def select_methods(
    names: Sequence[str], settings: NetworkSettings, layers: int, llms: Sequence[str] = ()
) -> dict[str, list[Method]]:
    """List methods by table: those of each group that is named, and "comparison" for methods that are named singly.

    Args:
        names: of methods or of :data:`GROUPS`.
        settings: the plans' network, which ablations change.
        layers: number of its language model's layers, of which ``figure4`` takes pairs.
        llms: other language models for ``table3``, without LoRA, as the paper compares them.

    Raises:
        UnknownName: a name is not that of a method or group.
        BadArgument: two methods would have one name, or ``llms`` are given without ``table3``.
    """
    tables: dict[str, list[str]] = {}
    for name in names:
        is_group = name in GROUPS
        names_of_methods = list_group(name, settings) if is_group else [name]
        tables.setdefault(name if is_group else "comparison", []).extend(names_of_methods)
    if "table3" in tables:
        tables["table3"] += [f"llm={llm}" for llm in llms]
    elif llms:
        raise BadArgument("llms", "Language models are compared in table3: name it among the methods.")
    if "figure4" in tables:
        tables["figure4"] += [f"layers-{first}-{first + 1}-no-lora" for first in first_layers(layers)]
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
    """List the first layer of each pair of neighbours, from the first to the last of a model with so many layers."""
    return sorted({min(round(depth * (layers - 1)), layers - 2) for depth in _DEPTHS})


def find_method(name: str, settings: NetworkSettings) -> Method:
    """Find a method by its name. Raises UnknownName when there is none."""
    if name == INITIAL:
        return Method(INITIAL, "Initial", "initial")
    if name.endswith(REFINED) and (base := find_method(name.removesuffix(REFINED), settings)).kind == "learned":
        return replace(
            base, name=base.name + REFINED, title=f"{base.title}, refined", refinement_steps=_REFINEMENT_STEPS
        )
    if name in CLASSICAL:
        return Method(name, CLASSICAL[name].title, "classical")
    networks = list_networks()
    if name in networks:
        return networks[name]
    if name.startswith("llm="):
        return _with_language_model(name.removeprefix("llm="), settings)
    plugin = plugin_of(settings)
    if name.endswith(f"-{_WITHOUT_LORA}"):
        layers = plugin.ablation(settings, name.removesuffix(f"-{_WITHOUT_LORA}"))
        return Method(name, f"{layers.title}, w/o LoRA", "learned", None, (*layers.changes, _NO_LORA))
    try:
        ablation = plugin.ablation(settings, name)
    except UnknownName:
        known = [*GROUPS, INITIAL, *CLASSICAL, *networks, *plugin.ablations, "llm=SOURCE"]
        raise UnknownName("method", name, known) from None
    # Table 3 compares this ablation with other language models.
    llm = plugin.language_model(settings) if name == _WITHOUT_LORA else None
    title = ablation.title + (f" ({_short_name(llm.source)})" if llm else "")
    return Method(name, title, "learned", None, ablation.changes)


def _with_language_model(source: str, settings: NetworkSettings) -> Method:
    # Imported here, because transformers takes seconds to import.
    from llmreg.networks.language_models.loading import select_layers

    name = _short_name(source)
    chosen = select_layers(source, None, plugin_of(settings).language_model(settings))
    layers = ",".join(map(str, chosen.layers))
    changes = (f"network.llm.source={source}", f"network.llm.layers=[{layers}]", _NO_LORA)
    return Method(f"llm-{name}-no-lora", name, "learned", None, changes)


def _short_name(source: str) -> str:
    """A language model's name, fit for a folder's name: of a path or a hub id the last part."""
    return re.sub(r"[^A-Za-z0-9]+", "-", source.rstrip("/").rsplit("/", 1)[-1]).strip("-").lower()
