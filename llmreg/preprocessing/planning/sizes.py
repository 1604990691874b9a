"""Sizes that train within the memory: configurations, the network's width, full or half resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmreg.errors import NotEnoughMemory
from llmreg.networks.costs import training_memory_gb
from llmreg.networks.registry import NetworkSettings, plugin_of
from llmreg.plans.plan_settings import Configuration
from llmreg.preprocessing.fingerprint import CaseFingerprint, PairFingerprint
from llmreg.preprocessing.planning.effort import FEWEST_EPOCHS, Budget, affordable_epochs
from llmreg.preprocessing.planning.frame_grid import plan_grid

# Voxels are made longer by this factor until training fits into the memory.
COARSENING = 1.1
FEWEST_TOKENS_PER_AXIS = 2


def plan_configuration(
    size: Sequence[int], downsampling: int, network: NetworkSettings, budget: Budget
) -> Configuration:
    """Pad a size to a shape that the network takes, at full (1) or half (2) resolution.

    Gradient checkpointing is planned where it is needed to stay within the memory.
    """
    plugin = plugin_of(network)
    multiple = plugin.stride(network) * downsampling
    padded = [-(-n // multiple) * multiple for n in size]
    shape = [n // downsampling for n in padded]
    coarsest = plugin.coarsest_stride(network)
    tokens = plugin.token_grid(network, shape) or [-(-n // coarsest) for n in shape]
    # They are rounded as in the plans, so that a reader can follow the decision.
    memory = [
        round(training_memory_gb(network, budget.step_size(shape, padded, recompute=recompute)), 2)
        for recompute in (False, True)
    ]
    recompute = memory[False] > budget.machine.memory_gb
    return Configuration.model_validate(
        {
            "downsampling": downsampling,
            "padded_size": padded,
            "network_shape": shape,
            "token_grid": tokens,
            "token_length": math.prod(tokens),
            "recompute": recompute,
            "memory_gb": memory[recompute],
        }
    )


@dataclass(frozen=True)
class Sizes:
    """A grid, and the configurations and the network that are trained on it.

    Attributes:
        spacing: of the common grid, mm, x, y, z.
        size: its voxels, x, y, z.
        full: the configuration at the grid's resolution.
        half: the configuration at half of it.
        network: its settings, of which the planner chose the size.
    """

    spacing: tuple[float, ...]
    size: tuple[int, ...]
    full: Configuration
    half: Configuration
    network: NetworkSettings


def plan_sizes(
    cases: Sequence[CaseFingerprint],
    network: NetworkSettings,
    budget: Budget,
    *,
    aligned: bool,
    spacing: Sequence[float] | None = None,
) -> tuple[Sizes, dict[str, str]]:
    """Choose the finest grid and the largest network that can be trained within the memory, if only at half resolution.

    A smaller network is preferred to a coarser grid, which would leave fewer tokens.

    Args:
        cases: of both modalities.
        network: the largest settings.
        budget: what training may cost.
        aligned: whether the cases are aligned on one grid.
        spacing: the user's, mm, x, y, z; the cases' when None.

    Returns:
        The sizes, and the reasons by decision.

    Raises:
        NotEnoughMemory: not even the smallest network fits.
    """
    memory = budget.machine.memory_gb
    plugin = plugin_of(network)
    key = plugin.size_setting
    candidates = [network, *plugin.narrower(network)]
    coarsening = 1.0
    while True:
        voxel, size, reason = plan_grid(cases, aligned=aligned, coarsening=coarsening, requested=spacing)
        for chosen in candidates:
            full, half = (plan_configuration(size, factor, chosen, budget) for factor in (1, 2))
            least = full if min(half.token_grid) < FEWEST_TOKENS_PER_AXIS else half
            if least.memory_gb <= memory:
                value = getattr(chosen, key) if key else network.name
                size_reason = (
                    f"{value}: training needs at least {least.memory_gb:.1f} of {memory:g} GB."
                    if chosen is network
                    else f"{value}: a wider network does not fit into {memory:g} GB even at half resolution."
                )
                reasons = {"grid": reason, f"network.{key or 'name'}": size_reason}
                return Sizes(voxel, size, full, half, chosen), reasons
        if max(size) <= 2 * plugin.coarsest_stride(network):
            raise NotEnoughMemory(half.memory_gb, memory)
        coarsening *= COARSENING


def displacement_voxels(pairs: Sequence[PairFingerprint], spacing: Sequence[float], *, aligned: bool) -> float | None:
    """The mean distance between corresponding structures before registration, in voxels; None without labels.

    Args:
        pairs: the sampled pairs.
        spacing: of the common grid.
        aligned: whether cases stay where they lie; otherwise pre-alignment removes at least the common shift.
    """
    distances = [pair.displacement_mm if aligned else pair.deformation_mm for pair in pairs]
    measured = [mm for mm in distances if mm is not None]
    return float(np.mean(measured) / np.prod(spacing) ** (1 / 3)) if measured else None


def choose_configuration(sizes: Sizes, displacement: float | None, budget: Budget) -> tuple[str, str]:
    """Choose full or half resolution by displacement, then by memory, then by time."""
    full, half, machine = sizes.full, sizes.half, budget.machine
    # Where structures lie further apart than half a token, half resolution is needed: it doubles the network's reach.
    reach = plugin_of(sizes.network).coarsest_stride(sizes.network) / 2
    if min(half.token_grid) < FEWEST_TOKENS_PER_AXIS:
        return "full", (
            f"full: half resolution would leave {min(half.token_grid)} token along an axis, too few for attention."
        )
    if displacement is None:
        return (
            "half",
            "half: without labels the distance of structures is unknown, and half resolution reaches twice as far.",
        )
    if displacement > reach:
        return "half", (
            f"half: structures lie {displacement:.1f} voxels apart, more than the {reach:g} of half a token, and "
            "half resolution reaches twice as far."
        )
    distance = f"structures lie {displacement:.1f} voxels apart, no more than the {reach:g} of half a token"
    if full.memory_gb > machine.memory_gb:
        return "half", f"half: {distance}, but full resolution needs {full.memory_gb:.1f} GB of {machine.memory_gb:g}."
    epochs = affordable_epochs(full, sizes.network, budget)
    if epochs is not None and epochs < FEWEST_EPOCHS:
        return "half", (
            f"half: {distance}, but on {machine.cores} CPU cores a night would give full resolution {epochs} epochs, "
            f"fewer than {FEWEST_EPOCHS}."
        )
    return "full", f"full: {distance}, so detail matters more than reach."
