"""Sizes that train within the memory and the time: the frame's grid, configurations, the network's size, epochs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from llmreg.devices import Machine
from llmreg.errors import NotEnoughMemory
from llmreg.geometry.grid import Grid
from llmreg.networks.network_registry import NetworkSettings, StepSize, plugin_of, step_seconds, training_memory_gb
from llmreg.plans.plan_settings import Configuration, Training
from llmreg.plans.plans import Plans
from llmreg.preprocessing.fingerprint import CaseFingerprint, PairFingerprint
from llmreg.similarity.loss_settings import LossSettings

# The paper's larger grid, 192 x 208 x 176.
MOST_VOXELS = 192 * 208 * 176
# Voxels of a common grid are at most this much longer or shorter than their geometric mean along an axis.
ANISOTROPY = 1.5
_GENEROUS = "the foreground's 90th percentile and 5 %"
# Cases on one grid whose structures overlap less than this (Dice) are not aligned: their grid is only a common format.
# They need pre-alignment, since the gradient of a Dice loss is zero where nothing overlaps.
ALIGNED_DICE = 0.1


def aligned_grid(cases: Sequence[CaseFingerprint], pairs: Sequence[PairFingerprint] = ()) -> Grid | None:
    """Find the axis-aligned grid of cases that are aligned already.

    Args:
        cases: of both modalities.
        pairs: sampled pairs; where none of them is annotated, a common grid is enough to count as aligned.

    Returns:
        The grid; None where cases have different grids, or structures that do not overlap.
    """
    overlaps = [pair.dice for pair in pairs if pair.dice is not None]
    if overlaps and np.mean(overlaps) < ALIGNED_DICE:
        return None
    first = Grid.from_dict(cases[0].grid)
    if not np.allclose(np.abs(first.direction).round(), np.abs(first.direction), atol=1e-3):
        return None
    return first if all(first.same_as(Grid.from_dict(case.grid)) for case in cases) else None


def plan_grid(
    cases: Sequence[CaseFingerprint],
    *,
    aligned: bool,
    coarsening: float = 1.0,
    requested: Sequence[float] | None = None,
) -> tuple[tuple[float, ...], tuple[int, ...], str]:
    """Choose spacing (mm) and size of the common grid, x, y, z, and give the reason.

    Args:
        cases: of both modalities.
        aligned: whether the cases are aligned on one grid, which is then used.
        coarsening: the factor by which voxels are made longer, to save memory.
        requested: the user's spacing, instead of the cases'.
    """
    spacing = np.median([case.spacing for case in cases], axis=0)
    if aligned:
        extent = np.asarray(cases[0].size) * spacing
    else:
        mean = float(np.prod(spacing) ** (1 / 3))
        spacing = np.clip(spacing, mean / ANISOTROPY, mean * ANISOTROPY)
        extent = np.percentile([case.foreground_extent for case in cases], 90, axis=0) * 1.05
    spacing = spacing if requested is None else np.asarray(requested)
    coarser = coarsening * max(1.0, float(np.prod(extent / spacing) / MOST_VOXELS) ** (1 / 3))
    # The ratio is rounded first, so that the grid of aligned cases keeps its size to the voxel.
    size = np.ceil(np.round(extent / (spacing * coarser), 3)).astype(int)
    reason = (
        "All cases lie on one grid, which is used as it is"
        if aligned and requested is None
        else f"Spacing: as requested; size: {'that of the grid of all cases' if aligned else _GENEROUS}"
        if requested is not None
        else f"Spacing: the cases' median, at most {ANISOTROPY:g} times anisotropic; size: {_GENEROUS}"
    )
    if coarsening > 1:
        reason += f"; coarsened {coarser:.2f} times, to fit into memory"
    elif coarser > 1:
        reason += f"; coarsened {coarser:.2f} times to {MOST_VOXELS / 1e6:.1f} million voxels, the paper's larger grid"
    return tuple((spacing * coarser).round(4).tolist()), tuple(size.tolist()), reason + "."


def choose_reference_case(cases: Sequence[CaseFingerprint], fixed_modality: int) -> str:
    """Choose the fixed case whose extent is nearest to the median."""
    fixed = [case for case in cases if case.modality == fixed_modality]
    middle = np.median([case.foreground_extent for case in fixed], axis=0)
    return min(fixed, key=lambda c: (float(np.abs(np.asarray(c.foreground_extent) - middle).sum()), c.case)).case


# Training on a CPU should end within a night. Where a night gives full resolution fewer than FEWEST_EPOCHS, half
# resolution is trained.
NIGHT_HOURS = 10.0
FEWEST_EPOCHS = 20


@dataclass(frozen=True)
class Budget:
    """What decides the cost of a training beside the network: the machine and the loss."""

    machine: Machine
    loss: LossSettings = field(default_factory=LossSettings)

    def step_of(self, configuration: Configuration, pairs: int = 1) -> StepSize:
        """The size of a training step of some pairs."""
        return StepSize(
            configuration.network_shape[::-1],
            math.prod(configuration.padded_size),
            self.machine,
            configuration.recompute,
            pairs,
            self.loss.memory_gb,
        )


def affordable_epochs(configuration: Configuration, network: NetworkSettings, budget: Budget) -> int | None:
    """The number of epochs that a night on the CPU allows; None on a GPU, for which there are no measurements."""
    if budget.machine.device != "cpu":
        return None
    epoch_seconds = step_seconds(network, budget.step_of(configuration)) * Training().steps_per_epoch
    return int(NIGHT_HOURS * 3600 / epoch_seconds)


def plan_epochs(configuration: Configuration, network: NetworkSettings, budget: Budget) -> tuple[int, str]:
    """Choose the default number of epochs, or on a CPU as many as a night allows, but not fewer than the least."""
    most = Training().epochs
    affordable = affordable_epochs(configuration, network, budget)
    if affordable is None or affordable >= most:
        return most, f"{most} epochs of {Training().steps_per_epoch} pairs."
    chosen = max(affordable, FEWEST_EPOCHS)
    return chosen, (
        f"{chosen} epochs of {Training().steps_per_epoch} pairs: what {budget.machine.cores} CPU cores train in about "
        f"{NIGHT_HOURS:g} hours, at least {FEWEST_EPOCHS}, at most {most}."
    )


def plan_batch_size(configuration: Configuration, network: NetworkSettings, budget: Budget) -> tuple[int, str]:
    """Choose the paper's batch size of 1; the reason says how many pairs would fit into the memory."""
    with_one, with_two = (training_memory_gb(network, budget.step_of(configuration, pairs)) for pairs in (1, 2))
    most = 1 + max(0, int((budget.machine.memory_gb - with_one) / (with_two - with_one)))
    return 1, (
        f"1, as in the paper: a step sees one pair; {most} would fit into {budget.machine.memory_gb:g} GB "
        "(training.batch_size), but whether they help was not measured."
        if most > 1
        else f"1: no second pair fits into {budget.machine.memory_gb:g} GB."
    )


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
    tokens = plugin.token_grid(network, shape) or [-(-n // plugin.coarsest_stride(network)) for n in shape]
    for recompute in (False, True):
        planned = Configuration.model_validate(
            {
                "downsampling": downsampling,
                "padded_size": padded,
                "network_shape": shape,
                "token_grid": tokens,
                "token_length": math.prod(tokens),
                "recompute": recompute,
                "memory_gb": 0.0,
            }
        )
        # It is rounded as in the plans, so that a reader can follow the decision.
        memory = round(training_memory_gb(network, budget.step_of(planned)), 2)
        if memory <= budget.machine.memory_gb:
            break
    return planned.model_copy(update={"memory_gb": memory})


def replace_network(plans: Plans, network: NetworkSettings, budget: Budget) -> Plans:
    """The plans with another network, for which the memory of all configurations is estimated again.

    Configurations whose shape the network takes keep it, so that volumes and digests stay; the others are padded again.
    """
    configurations = {}
    for name, planned in plans.configurations.items():
        if plugin_of(network).shape_problem(network, planned.network_shape, planned.token_grid):
            configurations[name] = plan_configuration(plans.size, planned.downsampling, network, budget)
        else:
            costs = plan_configuration(planned.padded_size, planned.downsampling, network, budget)
            configurations[name] = planned.model_copy(
                update={"memory_gb": costs.memory_gb, "recompute": costs.recompute}
            )
    return plans.model_copy(update={"network": network, "configurations": configurations})


@dataclass(frozen=True)
class Sizes:
    """A grid, and the configurations and the network that are trained on it.

    Attributes:
        spacing: of the common grid, mm, x, y, z.
        size: its voxels, x, y, z.
        configurations: ``full`` at the grid's resolution and ``half`` at half of it.
        network: its settings, with the size that the planner chose.
    """

    spacing: tuple[float, ...]
    size: tuple[int, ...]
    configurations: dict[str, Configuration]
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

    A smaller network is preferred to a coarser grid, which would leave less for it to see.

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
    coarsening = 1.0
    while True:
        voxel, size, reason = plan_grid(cases, aligned=aligned, coarsening=coarsening, requested=spacing)
        for chosen in (network, *plugin.narrower(network)):
            full, half = (plan_configuration(size, factor, chosen, budget) for factor in (1, 2))
            least = full if min(half.token_grid) < FEWEST_TOKENS_PER_AXIS else half
            if least.memory_gb <= memory:
                value = getattr(chosen, key) if key else network.name
                size_reason = (
                    f"{value}: training needs at least {least.memory_gb:.1f} of {memory:g} GB."
                    if chosen is network
                    else f"{value}: a larger network does not fit into {memory:g} GB even at half resolution."
                )
                sizes = Sizes(voxel, size, {"full": full, "half": half}, chosen)
                return sizes, {"grid": reason, f"network.{key or 'name'}": size_reason}
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
    full, half = sizes.configurations["full"], sizes.configurations["half"]
    # Where structures lie further apart than half of the coarsest features' step, half resolution is needed: it doubles
    # the network's reach.
    reach = plugin_of(sizes.network).coarsest_stride(sizes.network) / 2
    if min(half.token_grid) < FEWEST_TOKENS_PER_AXIS:
        return "full", (
            f"full: half resolution would leave {min(half.token_grid)} of the network's coarsest features along an "
            f"axis, fewer than {FEWEST_TOKENS_PER_AXIS}."
        )
    if displacement is None:
        return (
            "half",
            "half: without labels the distance of structures is unknown, and half resolution reaches twice as far.",
        )
    if displacement > reach:
        return "half", (
            f"half: structures lie {displacement:.1f} voxels apart, more than the {reach:g} that the network "
            "reaches, and half resolution reaches twice as far."
        )
    distance = f"structures lie {displacement:.1f} voxels apart, no more than the {reach:g} that the network reaches"
    machine = budget.machine
    if full.memory_gb > machine.memory_gb:
        return "half", f"half: {distance}, but full resolution needs {full.memory_gb:.1f} GB of {machine.memory_gb:g}."
    epochs = affordable_epochs(full, sizes.network, budget)
    if epochs is not None and epochs < FEWEST_EPOCHS:
        return "half", (
            f"half: {distance}, but on {machine.cores} CPU cores a night would give full resolution {epochs} epochs, "
            f"fewer than {FEWEST_EPOCHS}."
        )
    return "full", f"full: {distance}, so detail matters more than reach."
