"""From a fingerprint to plans: every decision a small function with its reason.

``documentation/planning.md`` lists the rules with their sources and measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from llmreg.data.dataset import Dataset
from llmreg.data.modalities import is_ct
from llmreg.devices import Machine
from llmreg.errors import UserError
from llmreg.geometry.grid import Grid
from llmreg.networks.config import LLMMorphSettings
from llmreg.networks.llm_morph.costs import BUILT_IN_SIZE, LLMSize, step_seconds, training_memory_gb
from llmreg.plans.plans import (
    AugmentationSettings,
    Configuration,
    Loss,
    Plans,
    PreAlignment,
    Training,
)
from llmreg.preprocessing.fingerprint import CaseFingerprint, Fingerprint, PairFingerprint
from llmreg.preprocessing.windows import PAPER_HU, plan_window

CONFIGURATIONS = ("full", "half")
TOKEN_STRIDE = 16
# The paper's network, but for cost volumes, with which it learns faster.
NETWORK = LLMMorphSettings(cost_volume=1)
# The paper's larger grid, 192 x 208 x 176.
MOST_VOXELS = 192 * 208 * 176
COARSENING = 1.1
# Voxels of a common grid are at most this much longer or shorter than their geometric mean along an axis.
ANISOTROPY = 1.5
GENEROUS = "the foreground's 90th percentile and 5 %"
# Structures that lie further apart than half a token need half resolution, where the network sees twice as far.
FAR_VOXELS = TOKEN_STRIDE / 2
FEWEST_TOKENS_PER_AXIS = 2
WIDTHS = (16, 12, 8)
# Training on a CPU should be done in a night; with fewer epochs than that at full resolution, half is taken.
NIGHT_HOURS = 10.0
FEWEST_EPOCHS = 20
SYMMETRIC = 0.85
# Cases on one grid whose structures overlap less than this (Dice) are not aligned: the grid is only a common format,
# and a Dice loss has no direction where nothing overlaps.
ALIGNED_DICE = 0.1


@dataclass(frozen=True)
class Budget:
    """What decides the cost of a training: the machine, the size of the language model's layers, and the loss."""

    machine: Machine
    llm: LLMSize = BUILT_IN_SIZE
    loss: Loss = field(default_factory=Loss)


def aligned_grid(cases: Sequence[CaseFingerprint], pairs: Sequence[PairFingerprint] = ()) -> Grid | None:
    """The axis-aligned grid that all cases have in common: then they are aligned already, unless labels disagree.

    Args:
        cases: of both modalities.
        pairs: sampled ones; without any that is annotated, a common grid is enough.
    """
    overlaps = [pair.dice for pair in pairs if pair.dice is not None]
    if overlaps and np.mean(overlaps) < ALIGNED_DICE:
        return None
    first = Grid.from_dict(cases[0].grid)
    if not np.allclose(np.abs(first.direction).round(), np.abs(first.direction), atol=1e-3):
        return None
    return first if all(first.same_as(Grid.from_dict(case.grid)) for case in cases) else None


def plan_grid(
    cases: Sequence[CaseFingerprint], shared: bool, coarsening: float = 1.0, wanted: Sequence[float] | None = None
) -> tuple[tuple, tuple, str]:
    """Spacing and size of the common grid, x, y, z, and the reason.

    Args:
        cases: of both modalities.
        shared: whether they lie aligned on one grid, which is taken over.
        coarsening: how many times longer voxels are than they would be, to save memory.
        wanted: the user's spacing, instead of the cases'.
    """
    spacing = np.median([case.spacing for case in cases], axis=0)
    if shared:
        extent = np.asarray(cases[0].size) * spacing
    else:
        mean = float(np.prod(spacing) ** (1 / 3))
        spacing = np.clip(spacing, mean / ANISOTROPY, mean * ANISOTROPY)
        extent = np.percentile([case.foreground_extent for case in cases], 90, axis=0) * 1.05
    spacing = spacing if wanted is None else np.asarray(wanted)
    coarser = coarsening * max(1.0, float(np.prod(extent / spacing) / MOST_VOXELS) ** (1 / 3))
    # Rounded first, so that a shared grid keeps its size to the voxel.
    size = np.ceil(np.round(extent / (spacing * coarser), 3)).astype(int)
    reason = (
        "All cases lie on one grid, which is taken over"
        if shared and wanted is None
        else f"Spacing: as asked for; size: {'that of the grid all cases share' if shared else GENEROUS}"
        if wanted is not None
        else f"Spacing: the cases' median, at most {ANISOTROPY:g} times anisotropic; size: {GENEROUS}"
    )
    if coarsening > 1:
        reason += f"; coarsened {coarser:.2f} times, to fit into memory"
    elif coarser > 1:
        reason += f"; coarsened {coarser:.2f} times to {MOST_VOXELS / 1e6:.1f} million voxels, the paper's larger grid"
    return tuple((spacing * coarser).round(4).tolist()), tuple(size.tolist()), reason + "."


def plan_configuration(
    size: Sequence[int], downsampling: int, network: LLMMorphSettings, budget: Budget
) -> Configuration:
    """Pad a size to what the network can halve four times, at full (1) or half (2) resolution.

    The finest level is computed twice where that is needed to stay within the memory.
    """
    multiple = TOKEN_STRIDE * downsampling
    padded = [-(-n // multiple) * multiple for n in size]
    shape = [n // downsampling for n in padded]
    tokens = [n // TOKEN_STRIDE for n in shape]
    voxels, grid = int(np.prod(shape)), int(np.prod(padded))
    # As they are written into the plans, so that a reader sees why.
    memory = [
        round(training_memory_gb(network, budget.llm, voxels, grid, twice, budget.machine, budget.loss), 2)
        for twice in (False, True)
    ]
    recompute = memory[False] > budget.machine.memory_gb
    return Configuration.model_validate(
        dict(
            downsampling=downsampling,
            padded_size=padded,
            network_shape=shape,
            token_grid=tokens,
            token_length=int(np.prod(tokens)),
            recompute=recompute,
            memory_gb=memory[recompute],
        )
    )


@dataclass(frozen=True)
class Sizes:
    """A grid and what runs on it.

    Attributes:
        spacing: of the common grid, mm, x, y, z.
        size: its voxels.
        full: the configuration at its own resolution.
        half: the one at half of it.
        network: settings, of which the width was chosen.
    """

    spacing: tuple[float, ...]
    size: tuple[int, ...]
    full: Configuration
    half: Configuration
    network: LLMMorphSettings


def plan_sizes(
    cases: Sequence[CaseFingerprint],
    shared: bool,
    network: LLMMorphSettings,
    budget: Budget,
    spacing: Sequence[float] | None = None,
) -> tuple[Sizes, dict[str, str]]:
    """The finest grid and the widest network that train within the memory, at half resolution if need be.

    A narrower network comes before a coarser grid, that is, fewer tokens.

    Raises:
        UserError: not even the smallest network fits.
    """
    memory = budget.machine.memory_gb
    widths = (network.width, *(width for width in WIDTHS if width < network.width))
    coarsening = 1.0
    while True:
        voxel, size, reason = plan_grid(cases, shared, coarsening, spacing)
        for width in widths:
            chosen = network.model_copy(update={"width": width})
            full, half = (plan_configuration(size, factor, chosen, budget) for factor in (1, 2))
            least = full if min(half.token_grid) < FEWEST_TOKENS_PER_AXIS else half
            if least.memory_gb <= memory:
                why = (
                    f"{width}: training needs {least.memory_gb:.1f} GB at the least, of {memory:g}."
                    if width == network.width
                    else f"{width}: a wider network does not fit into {memory:g} GB even at half resolution."
                )
                return Sizes(voxel, size, full, half, chosen), {"grid": reason, "network.width": why}
        if max(size) <= 2 * TOKEN_STRIDE:
            raise UserError(
                f"Not even the smallest network fits into {memory:g} GB (it needs about {half.memory_gb:.1f}): plan "
                "with more memory (--memory-gb) or a smaller language model (--llm)."
            )
        coarsening *= COARSENING


def displacement_voxels(pairs: Sequence[PairFingerprint], spacing: Sequence[float], aligned: bool) -> float | None:
    """How far structures lie apart where registration starts; None where no labels tell.

    Args:
        pairs: the sampled pairs.
        spacing: of the common grid.
        aligned: whether cases stay where they lie; else pre-alignment takes at least the shift away.
    """
    found = [pair.displacement_mm if aligned else pair.deformation_mm for pair in pairs]
    known = [mm for mm in found if mm is not None]
    return float(np.mean(known) / np.prod(spacing) ** (1 / 3)) if known else None


def choose_configuration(sizes: Sizes, displacement: float | None, budget: Budget) -> tuple[str, str]:
    """Full or half resolution: displacement decides, then memory, then time."""
    full, half, machine = sizes.full, sizes.half, budget.machine
    if min(half.token_grid) < FEWEST_TOKENS_PER_AXIS:
        return "full", (
            f"full: half resolution would leave {min(half.token_grid)} token along an axis, too few to attend over."
        )
    if displacement is None:
        return "half", "half: no labels tell how far structures lie apart, and half resolution sees twice as far."
    if displacement > FAR_VOXELS:
        return "half", (
            f"half: structures lie {displacement:.1f} voxels apart, more than the {FAR_VOXELS:g} of half a token, and "
            "half resolution sees twice as far."
        )
    near = f"structures lie {displacement:.1f} voxels apart, no more than the {FAR_VOXELS:g} of half a token"
    if full.memory_gb > machine.memory_gb:
        return "half", f"half: {near}, but full resolution needs {full.memory_gb:.1f} GB of {machine.memory_gb:g}."
    epochs = affordable_epochs(full, sizes.network, machine)
    if epochs is not None and epochs < FEWEST_EPOCHS:
        return "half", (
            f"half: {near}, but on {machine.cores} CPU cores a night would give full resolution {epochs} epochs, fewer "
            f"than {FEWEST_EPOCHS}."
        )
    return "full", f"full: {near}, so that detail matters more than reach."


def affordable_epochs(configuration: Configuration, network: LLMMorphSettings, machine: Machine) -> int | None:
    """Epochs that a night on the CPU allows; None on a GPU, for which nobody measured."""
    if machine.device != "cpu":
        return None
    seconds = step_seconds(network, int(np.prod(configuration.network_shape)), configuration.recompute, machine)
    return int(NIGHT_HOURS * 3600 / (seconds * Training().steps_per_epoch))


def plan_epochs(configuration: Configuration, network: LLMMorphSettings, machine: Machine) -> tuple[int, str]:
    """The default number, or on a CPU as many as a night allows, but not fewer than the least."""
    most = Training().epochs
    affordable = affordable_epochs(configuration, network, machine)
    if affordable is None or affordable >= most:
        return most, f"{most} epochs of {Training().steps_per_epoch} pairs."
    chosen = max(affordable, FEWEST_EPOCHS)
    return chosen, (
        f"{chosen} epochs of {Training().steps_per_epoch} pairs: what {machine.cores} CPU cores train in about "
        f"{NIGHT_HOURS:g} hours, at least {FEWEST_EPOCHS}, at most {most}."
    )


def plan_batch_size(configuration: Configuration, network: LLMMorphSettings, budget: Budget) -> tuple[int, str]:
    """The paper's 1, and how many pairs a step could have."""
    voxels, grid = (int(np.prod(size)) for size in (configuration.network_shape, configuration.padded_size))
    one, two = (
        training_memory_gb(
            network, budget.llm, voxels, grid, configuration.recompute, budget.machine, budget.loss, pairs
        )
        for pairs in (1, 2)
    )
    most = 1 + max(0, int((budget.machine.memory_gb - one) / (two - one)))
    return 1, (
        f"1, the paper's: steps see one pair each; {most} would fit into {budget.machine.memory_gb:g} GB (--set "
        "training.batch_size), for which nobody measured what they bring."
        if most > 1
        else f"1: no second pair fits into {budget.machine.memory_gb:g} GB."
    )


def plan_loss(fingerprint: Fingerprint) -> tuple[Loss, str]:
    """Dice alone where all is annotated, the images' similarity alone where nothing is, else both."""
    if not fingerprint.annotated_cases or not fingerprint.annotated_structures:
        return Loss(dice=0.0, similarity=1.0), (
            "No case is annotated: image similarity (MIND-SSC) and smoothness, without Dice."
        )
    shares = fingerprint.annotated_structures.values()
    if min(shares) == 1:
        return Loss(), "Every case is annotated for every structure: soft Dice and smoothness, as in the paper."
    return Loss(similarity=1.0), (
        f"{100 * fingerprint.annotated_cases:.0f} % of the cases are annotated, the least annotated structure in "
        f"{100 * min(shares):.0f} %: soft Dice where it is known, image similarity (MIND-SSC) everywhere, smoothness."
    )


def plan_mirroring(cases: Sequence[CaseFingerprint]) -> tuple[AugmentationSettings, str]:
    """Pairs are mirrored where the anatomy is symmetric."""
    overlap = float(np.median([case.mirror_overlap for case in cases]))
    symmetric = overlap >= SYMMETRIC
    return AugmentationSettings(mirror_axes=("x",) if symmetric else ()), (
        f"The annotated region overlaps its left-right mirror image by {overlap:.2f} (Dice): "
        + ("pairs are mirrored too." if symmetric else "the anatomy is not symmetric, so pairs are not mirrored.")
    )


def reference_case(cases: Sequence[CaseFingerprint], fixed_modality: int) -> str:
    """The fixed case whose extent is nearest to the median."""
    fixed = [case for case in cases if case.modality == fixed_modality]
    middle = np.median([case.foreground_extent for case in fixed], axis=0)
    return min(fixed, key=lambda c: (float(np.abs(np.asarray(c.foreground_extent) - middle).sum()), c.case)).case


@dataclass(frozen=True)
class PlannerOverrides:
    """What a user decides instead of the planner; None leaves it to the planner.

    Attributes:
        network: its settings, the planner's by default; the width may become less.
        configuration: the default one, ``full`` or ``half``.
        spacing: of the common grid, mm, x, y, z.
    """

    network: LLMMorphSettings = NETWORK
    configuration: str | None = None
    spacing: tuple[float, ...] | None = None


def make_plans(
    dataset: Dataset, fingerprint: Fingerprint, budget: Budget, wishes: PlannerOverrides | None = None
) -> Plans:
    """The plans of a dataset; each decision's reason is in ``reasons``.

    The pre-alignment is not chosen yet: see :func:`llmreg.preprocessing.alignment_choice.choose_prealignment`.

    Args:
        dataset: its pairing, modalities and what it holds out, which shapes no decision.
        fingerprint: of the dataset.
        budget: what training may cost.
        wishes: what the user decides.
    """
    wishes = wishes or PlannerOverrides()
    cases = [case for case in fingerprint.cases if case.case not in dataset.held_out]
    reasons: dict[str, str] = {}
    normalization = {}
    for modality, name in sorted(dataset.modalities.items()):
        # Of a modality that is only held out, its own images are all there is.
        own = [case for case in cases if case.modality == modality] or fingerprint.of_modality(modality)
        normalization[modality], reasons[f"normalization.{modality}"] = plan_window(own, name)
    loss, reasons["loss"] = plan_loss(fingerprint)
    budget = replace(budget, loss=loss)
    shared = aligned_grid(cases, fingerprint.pairs)
    aligned = shared is not None
    sizes, why = plan_sizes(cases, aligned, wishes.network, budget, wishes.spacing)
    reasons |= why
    displacement = displacement_voxels(fingerprint.pairs, sizes.spacing, aligned)
    default, reasons["default_configuration"] = choose_configuration(sizes, displacement, budget)
    if wishes.configuration is not None:
        default, reasons["default_configuration"] = wishes.configuration, f"{wishes.configuration}: asked for."
    chosen = sizes.full if default == "full" else sizes.half
    if chosen.memory_gb > budget.machine.memory_gb:
        reasons["default_configuration"] += (
            f" It needs about {chosen.memory_gb:.1f} GB, more than the {budget.machine.memory_gb:g} there are."
        )
    twice = [name for name, planned in (("full", sizes.full), ("half", sizes.half)) if planned.recompute]
    reasons["recompute"] = (
        f"{' and '.join(twice) or 'no configuration'}: the finest level is computed twice where training needs more "
        f"than {budget.machine.memory_gb:g} GB otherwise."
    )
    batch_size, reasons["training.batch_size"] = plan_batch_size(chosen, sizes.network, budget)
    epochs, reasons["training.epochs"] = plan_epochs(chosen, sizes.network, budget.machine)
    augmentation, reasons["augmentation.mirror_axes"] = plan_mirroring(cases)
    reference = reference_case(cases, dataset.fixed_modality)
    reasons["prealignment"] = (
        f"The cases share one grid and are taken to be aligned; others are brought to {reference} by the centre "
        "of the foreground, then rigidly, then affinely, by mutual information."
        if shared
        else "Not chosen yet: the label maps of some cases tell which stages help."
    )
    return Plans.model_validate(
        dict(
            dataset_name=dataset.name,
            plans_name="default",
            spacing=sizes.spacing,
            size=sizes.size,
            centre=shared.centre.tolist() if shared else (0.0, 0.0, 0.0),
            fixed_modality=dataset.fixed_modality,
            moving_modality=dataset.moving_modality,
            labels=dataset.labels,
            normalization=normalization,
            prealignment=PreAlignment(
                method="affine", reference_case=reference, aligned_grid=shared.to_dict() if shared else None
            ),
            configurations={"full": sizes.full, "half": sizes.half},
            default_configuration=default,
            network=sizes.network,
            loss=loss,
            training=Training(epochs=epochs, batch_size=batch_size),
            augmentation=augmentation,
            reasons=reasons,
        )
    )


def paper_plans(plans: Plans) -> Plans:
    """The paper's settings: Dice + 0.1 L2, learning rate 1e-4, no pre-alignment, its windows, 50 epochs of 1,620 pairs.

    What the paper leaves open (normalisation of the convolutions, attention, rotary embedding) is as in the default.
    """
    content = plans.model_dump()
    for modality in content["normalization"].values():
        if modality["scheme"] == "window" and is_ct(modality["modality"]) and modality["lower"] < -1:
            modality["lower"], modality["upper"] = PAPER_HU
    content["plans_name"] = "paper"
    # Images on grids of their own need at least a common centre to be seen by the network at all.
    shared = plans.prealignment.aligned_grid is not None
    content["prealignment"]["method"] = "identity" if shared else "centre"
    content["network"]["cost_volume"] = 0
    content["loss"] |= {"dice": 1.0, "similarity": 0.0, "smoothness": 0.1}
    content["training"] |= {
        "learning_rate": 1e-4,
        "schedule": "constant",
        "clip_gradient": None,
        "epochs": 50,
        "steps_per_epoch": 1620,
    }
    content["augmentation"] |= {"mirror_axes": (), "spatial_probability": 0.0, "intensity_probability": 0.0}
    content["reasons"]["paper"] = (
        "The paper's settings (Implementing Details); its abdomen has 1,620 pairs and 50 epochs, its brain 300 epochs. "
        + ("" if shared else "Against the paper, cases are centred: they share no grid.")
    ).strip()
    return Plans.model_validate(content)
