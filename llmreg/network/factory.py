"""Building a network from its settings, and the part of it that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from llmreg.errors import UserError
from llmreg.network.config import LLMSettings, NetworkSettings
from llmreg.network.llm import loading, sources
from llmreg.network.llm_morph import LLMMorph

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def build_network(settings: NetworkSettings, shape: Sequence[int]) -> LLMMorph:
    """Build the network for images of one shape, on the CPU, with pretrained frozen layers.

    Args:
        settings: the network's settings.
        shape: (z, y, x), each a multiple of 16.

    Raises:
        UserError: the language model is missing, unreadable, or another than the settings' ``sha256`` says.
        ValueError: the shape is not a multiple of 16.
    """
    return LLMMorph(settings, shape, load_llm(settings.llm))


def load_llm(settings: LLMSettings) -> loading.LoadedLayers:
    """Read the frozen layers and check their digest.

    Raises:
        UserError: they are missing, unreadable, lack a LoRA target, or differ from ``settings.sha256``.
    """
    source = sources.resolve(settings.source)
    loaded = loading.load_layers(source, settings.layers, DTYPES[settings.dtype])
    if settings.sha256 is not None and settings.sha256 != loaded.sha256:
        raise UserError(
            f"the language model at {source.path} is not the one this plan was made with "
            f"(sha256 {loaded.sha256[:12]}, not {settings.sha256[:12]}); put the same weights there."
        )
    if settings.lora is not None:
        linear = {name.split(".")[-1] for name, part in loaded.layers[0].named_modules() if isinstance(part, nn.Linear)}
        for target in settings.lora.targets:
            if target not in linear:
                raise UserError(
                    f"LoRA target '{target}' is not in the language model's layers; "
                    f"use some of {', '.join(sorted(linear))}."
                )
    return loaded


def trainable_state(network: nn.Module) -> dict[str, Tensor]:
    """What training changes: trainable parameters and persistent buffers, without the frozen language model."""
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in network.state_dict().items() if name not in frozen}


def load_trainable_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back what :func:`trainable_state` gave.

    Raises:
        UserError: a tensor is missing, unknown or of another shape; the network is then unchanged.
    """
    own = trainable_state(network)
    for name in sorted(own.keys() ^ state.keys()):
        where = "lacks" if name in own else "has an unknown"
        raise UserError(f"the checkpoint does not fit this plan's network (it {where} {name}); use its own plan.")
    for name, value in own.items():
        if value.shape != state[name].shape:
            raise UserError(
                f"the checkpoint does not fit this plan's network ({name} is {tuple(state[name].shape)}, not "
                f"{tuple(value.shape)}); use its own plan."
            )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name])
