"""The methods that are compared: what is trained and how, or which program registers instead."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llmreg.comparison.classical import CLASSICAL
from llmreg.errors import UserError
from llmreg.networks.config import LLMMorphSettings
from llmreg.networks.llm_morph.ablations import ABLATIONS, ablation

Kind = Literal["initial", "classical", "learned"]

INITIAL, OURS = "initial", "llm_morph"
REFINED = "+refine"
# As documentation/refinement.md measures it.
_REFINEMENT = ("--refine", "50")
_NO_LORA = "network.llm.lora=null"


@dataclass(frozen=True)
class Method:
    """One row of a table.

    Attributes:
        name: as it is asked for; also of its folder.
        title: what tables call it.
        kind: whether it is trained, another program, or nothing at all.
        network: a baseline's; None for LLM-Morph.
        changes: of the plans, ``key=value``.
        flags: of ``llmreg_predict``.
    """

    name: str
    title: str
    kind: Kind
    network: str | None = None
    changes: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()

    @property
    def trained_as(self) -> str:
        """Name of what is trained, which differently predicted methods share."""
        return self.name.removesuffix(REFINED)


_NETWORKS = {
    "voxelmorph": Method("voxelmorph", "VoxelMorph", "learned", "voxelmorph"),
    "voxelmorph-small": Method(
        "voxelmorph-small", "VoxelMorph (small)", "learned", "voxelmorph", ("network.size=small",)
    ),
    "transmorph": Method("transmorph", "TransMorph", "learned", "transmorph"),
    "transmorph-3": Method("transmorph-3", "TransMorph (3 stages)", "learned", "transmorph", ("network.stages=3",)),
    "mambamorph": Method("mambamorph", "MambaMorph", "learned", "mambamorph"),
    "dual_pyramid": Method("dual_pyramid", "Dual-PRNet", "learned", "dual_pyramid"),
    OURS: Method(OURS, "LLM-Morph", "learned"),
}
_TITLES = {
    "ants": "ANTs SyN",
    "greedy": "greedy",
    "elastix": "elastix",
    "convexadam": "ConvexAdam",
    "no-blocks": "w/o LEBs and adapters",
    "vit": "LEBs r/w ViTs",
    "one-block": "w/ one LEB",
    "no-lora": "w/o LoRA",
    "random-weights": "random LLM weights",
    "adapters-only": "adapters without LLM",
    "no-cost-volume": "w/o cost volumes",
}
# Of 32 layers the paper's figure 4 takes 0/1, 7/8, 15/16, 23/24 and 30/31.
_PLACES = (0.0, 7 / 31, 15 / 31, 23 / 31, 30 / 31)
GROUPS = {
    "table1": (
        INITIAL,
        *CLASSICAL,
        "voxelmorph-small",
        "voxelmorph",
        "dual_pyramid",
        "transmorph",
        "mambamorph",
        OURS,
        OURS + REFINED,
    ),
    "table2": (
        INITIAL,
        "no-blocks",
        "vit",
        "one-block",
        "no-lora",
        "random-weights",
        "adapters-only",
        "no-cost-volume",
        OURS,
    ),
    "table3": (INITIAL, "no-lora"),
    "figure4": (INITIAL,),
}


def chosen(
    names: Sequence[str], settings: LLMMorphSettings, layers: int, llms: Sequence[str] = ()
) -> dict[str, list[Method]]:
    """Methods by the table they belong to: those of :data:`GROUPS` that are named, and "comparison" for other names.

    Args:
        names: as typed, of methods or groups.
        settings: the plans' network, which ablations change.
        layers: of its language model, which ``figure4`` takes pairs of.
        llms: other language models, for ``table3``; without LoRA, as the paper compares them.

    Raises:
        UserError: a name is unknown.
    """
    tables: dict[str, list[str]] = {}
    for name in names:
        tables.setdefault(name if name in GROUPS else "comparison", []).extend(GROUPS.get(name, (name,)))
    for name, further in (
        ("table3", [f"llm={llm}" for llm in llms]),
        ("figure4", [f"layers-{first}-{first + 1}-no-lora" for first in layer_pairs(layers)]),
    ):
        if name in tables:
            tables[name] += further
    if settings.cost_volume == 0 and "table2" in tables:
        # It would be LLM-Morph once more.
        tables["table2"] = [name for name in tables["table2"] if name != "no-cost-volume"]
    if llms and "table3" not in tables:
        raise UserError("--llms belong to table3: add it to --methods.")
    found = {table: [method(name, settings) for name in dict.fromkeys(own)] for table, own in tables.items()}
    known: dict[str, Method] = {}
    for one in (one for several in found.values() for one in several):
        if known.setdefault(one.name, one) != one:
            raise UserError(f"Two methods would be called {one.name}: give one of these models another folder name.")
    return found


def layer_pairs(layers: int) -> list[int]:
    """The first of each pair of neighbouring layers, from the first to the last of the model."""
    return sorted({min(round(place * (layers - 1)), layers - 2) for place in _PLACES})


def method(name: str, settings: LLMMorphSettings) -> Method:
    """Raises UserError when there is none of that name."""
    if name == INITIAL:
        return Method(INITIAL, "Initial", "initial")
    if name.endswith(REFINED) and (base := method(name.removesuffix(REFINED), settings)).kind == "learned":
        return replace(base, name=base.name + REFINED, title=f"{base.title}, refined", flags=_REFINEMENT)
    if name in CLASSICAL:
        return Method(name, _TITLES[name], "classical")
    if name in _NETWORKS:
        return _NETWORKS[name]
    if name.startswith("llm="):
        source = name.removeprefix("llm=")
        short = _short(source)
        # Inside, since transformers takes seconds to import.
        from llmreg.networks.language_models.fetching import named_layers

        own = named_layers(source, None, settings.llm).layers
        layers = f"network.llm.layers=[{','.join(map(str, own))}]"
        return Method(
            f"llm-{short}-no-lora", short, "learned", None, (f"network.llm.source={source}", layers, _NO_LORA)
        )
    if pair := re.fullmatch(r"layers-(\d+)-(\d+)(-no-lora)?", name):
        changes = (f"network.llm.layers=[{int(pair[1])},{int(pair[2])}]", *([_NO_LORA] if pair[3] else []))
        title = f"layers {pair[1]}/{pair[2]}" + (", w/o LoRA" if pair[3] else "")
        return Method(name, title, "learned", None, changes)
    if name in ABLATIONS:
        # Table 3 compares it with other language models.
        title = _TITLES[name] + (f" ({_short(settings.llm.source)})" if name == "no-lora" else "")
        return Method(name, title, "learned", None, tuple(ablation(name, settings)))
    known = ", ".join([*GROUPS, INITIAL, *CLASSICAL, *_NETWORKS, *ABLATIONS, "llm=SOURCE"])
    raise UserError(f"There is no method '{name}': choose among {known}.")


def _short(source: str) -> str:
    """A language model's name: of a path or a hub id the last part, fit for a folder's name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", source.rstrip("/").rsplit("/", 1)[-1]).strip("-").lower()
