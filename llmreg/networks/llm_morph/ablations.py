"""The paper's ablations, and the controls it lacks, as changes of the plans."""

from __future__ import annotations

import re

from llmreg.errors import UnknownName, UserError
from llmreg.networks.llm_morph.settings import LLMMorphSettings
from llmreg.networks.registry import Variant

LAYER_PAIR = "layers-I-J"
_ONE_BLOCK = "one-block"
_NO_COST_VOLUME = "no-cost-volume"
_FIXED = {
    "no-blocks": Variant(
        "w/o LEBs and adapters",
        ("network.blocks=none",),
        "no encoding blocks, the decoder is fed by the skips alone (paper: 1)",
    ),
    "vit": Variant(
        "LEBs r/w ViTs",
        ("network.blocks=vit",),
        "vision-transformer layers instead of the language model's (paper: 2)",
    ),
    "no-lora": Variant("w/o LoRA", ("network.llm.lora=null",), "the language model's layers as they are (paper: 4)"),
    "random-weights": Variant(
        "random LLM weights", ("network.llm.weights=random",), "the same layers with random weights"
    ),
    "adapters-only": Variant(
        "adapters without LLM", ("network.blocks=adapters",), "the adapters without the language model's layers"
    ),
    _NO_COST_VOLUME: Variant(
        "w/o cost volumes", ("network.cost_volume=0",), "no cost volumes, which the paper's network has not either"
    ),
}
ABLATIONS = {name: variant.summary for name, variant in _FIXED.items()} | {
    _ONE_BLOCK: "the first encoding block alone (paper: 3)",
    LAYER_PAIR: "layers I and J of the language model",
}


def ablation(settings: LLMMorphSettings, name: str) -> Variant:
    """The network without one of its parts.

    Args:
        settings: of the network that is ablated.
        name: one of :data:`ABLATIONS`, with numbers for I and J.

    Raises:
        UserError: there is none of that name, or these settings have not the part that it takes away.
    """
    if pair := re.fullmatch(r"layers-(\d+)-(\d+)", name):
        first, second = map(int, pair.groups())
        return Variant(f"layers {first}/{second}", (f"network.llm.layers=[{first},{second}]",), ABLATIONS[LAYER_PAIR])
    if name == _ONE_BLOCK:
        return Variant("w/ one LEB", (f"network.llm.layers=[{settings.llm.layers[0]}]",), ABLATIONS[name])
    if name == _NO_COST_VOLUME and not settings.cost_volume:
        raise UserError("These plans have no cost volumes that could be taken away.")
    if name not in _FIXED:
        raise UnknownName("ablation", name, [*ABLATIONS, "layers-0-1"])
    return _FIXED[name]
