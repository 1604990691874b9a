"""The paper's ablations, and the controls it lacks, as changes of the plans."""

from __future__ import annotations

import re

from llmreg.errors import UserError
from llmreg.networks.config import LLMMorphSettings, NetworkSettings

ABLATIONS = {
    "no-blocks": "no encoding blocks, the decoder is fed by the skips alone (paper: 1)",
    "vit": "vision-transformer layers instead of the language model's (paper: 2)",
    "one-block": "the first encoding block alone (paper: 3)",
    "no-lora": "the language model's layers as they are (paper: 4)",
    "random-weights": "the same layers with random weights",
    "adapters-only": "the adapters without the language model's layers",
    "no-cost-volume": "no cost volumes, which the paper's network has not either",
    "layers-I-J": "layers I and J of the language model",
}
_CHANGES = {
    "no-blocks": "network.blocks=none",
    "vit": "network.blocks=vit",
    "no-lora": "network.llm.lora=null",
    "random-weights": "network.llm.weights=random",
    "adapters-only": "network.blocks=adapters",
    "no-cost-volume": "network.cost_volume=0",
}


def ablation(name: str, settings: NetworkSettings) -> list[str]:
    """The changes of the plans, as ``key=value``, that make an ablation.

    Args:
        name: one of ``ABLATIONS``, with numbers for I and J.
        settings: the network that is ablated.

    Raises:
        UserError: there is none of that name, or the network is not LLM-Morph.
    """
    if not isinstance(settings, LLMMorphSettings):
        raise UserError(f"Ablations take parts of LLM-Morph away, which {settings.name} has not: leave --network out.")
    if pair := re.fullmatch(r"layers-(\d+)-(\d+)", name):
        return [f"network.llm.layers=[{int(pair[1])},{int(pair[2])}]"]
    if name == "one-block":
        return [f"network.llm.layers=[{settings.llm.layers[0]}]"]
    if name == "no-cost-volume" and not settings.cost_volume:
        raise UserError("These plans have no cost volumes that could be taken away: leave no-cost-volume out.")
    if name not in _CHANGES:
        raise UserError(f"There is no ablation '{name}': choose {', '.join(ABLATIONS)} (layers-0-1, say).")
    return [_CHANGES[name]]
