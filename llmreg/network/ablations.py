"""The paper's ablations, and the controls it lacks, as changes of the plans."""

from __future__ import annotations

import re

from llmreg.errors import UserError
from llmreg.network.config import NetworkSettings

# Name: (changes of the plans, what it is).
ABLATIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "no-blocks": (("network.blocks=none",), "no encoding blocks: the decoder is fed by the skips alone (paper: 1)"),
    "vit": (("network.blocks=vit",), "vision-transformer layers instead of the language model's (paper: 2)"),
    "one-block": ((), "the first encoding block alone (paper: 3)"),
    "no-lora": (("network.llm.lora=null",), "the language model's layers as they are (paper: 4)"),
    "random-weights": (("network.llm.weights=random",), "the same layers with random weights"),
    "adapters-only": (("network.blocks=adapters",), "the adapters without the language model's layers"),
}
_LAYERS = re.compile(r"layers-(\d+)-(\d+)")


def ablation(name: str, settings: NetworkSettings) -> list[str]:
    """The changes of the plans, as ``key=value``, that make an ablation.

    Args:
        name: one of ``ABLATIONS``, or ``layers-I-J`` for another pair of layers.
        settings: the network that is ablated.

    Raises:
        UserError: there is none of that name.
    """
    if pair := _LAYERS.fullmatch(name):
        return [f"network.llm.layers=[{int(pair[1])},{int(pair[2])}]"]
    if name == "one-block":
        return [f"network.llm.layers=[{settings.llm.layers[0]}]"]
    if name not in ABLATIONS:
        raise UserError(f"There is no ablation '{name}': choose {', '.join(ABLATIONS)} or layers-I-J, layers-0-1 say.")
    return list(ABLATIONS[name][0])
