"""The plans of a dataset: all decisions with their reasons, and the same plans with the paper's settings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from llmreg.arguments import check_choice, check_positive
from llmreg.data.dataset import Dataset
from llmreg.engine.prealignment import PreAlignment
from llmreg.errors import BadArgument
from llmreg.networks.network_registry import NetworkSettings, default_settings, plugin_of
from llmreg.plans.plan_settings import AugmentationSettings, Normalization, Training
from llmreg.plans.plans import Plans
from llmreg.preprocessing.common_frame import is_ct, is_mr, safe_default
from llmreg.preprocessing.fingerprint import CaseFingerprint, Fingerprint
from llmreg.preprocessing.planning.sizes import (
    Budget,
    aligned_grid,
    choose_configuration,
    choose_reference_case,
    displacement_voxels,
    plan_batch_size,
    plan_epochs,
    plan_sizes,
)
from llmreg.similarity.loss_settings import LossSettings

# The paper's window for soft tissue (section Data Preparation).
PAPER_HU = (-180.0, 400.0)
# Structures get a window of their own if their range, with as much again on each side, is less than this share of the
# paper's window.
NARROW = 0.5
# Hounsfield units of a CT span at least the range from air or fat to soft tissue.
LEAST_HU_RANGE = 100.0


def plan_window(cases: Sequence[CaseFingerprint], modality: str) -> tuple[Normalization, str]:
    """Choose how a modality's intensities become [0, 1], and give the reason."""
    low, high = min(case.range[0] for case in cases), max(case.range[1] for case in cases)
    for lower, upper in ((0.0, 1.0), (-1.0, 1.0)):
        # Each image must come near both ends, or its values are small numbers of another unit.
        ends = all(c.range[0] < lower + 0.25 and c.range[1] > upper - 0.25 for c in cases)
        if lower - 0.01 <= low and high <= upper + 0.01 and ends:
            return _window(modality, lower, upper), (
                f"{modality}: values lie in {lower:g} to {upper:g}, so the images are normalised already and are "
                "used as they are."
            )
    default = safe_default(modality)
    percentiles = f"each image's own foreground percentiles {default.lower:g} and {default.upper:g}"
    if is_mr(modality):
        return default, f"{modality}: clipped to {percentiles}, as in the paper."
    if not is_ct(modality):
        return default, f"{modality}: neither CT nor MR by its name, so the safe default: {percentiles}."
    if low >= 0 or high - low < LEAST_HU_RANGE:
        return default, (
            f"{modality}: values from {low:g} to {high:g} cannot be Hounsfield units, so each image's own percentiles "
            "are used."
        )
    return _plan_hu(cases, modality)


def _plan_hu(cases: Sequence[CaseFingerprint], modality: str) -> tuple[Normalization, str]:
    # Where some cases are annotated, only the annotated structures decide and not whole bodies.
    rows = [row for case in cases for row in case.structure_intensities.values()] or [c.intensities for c in cases]
    low = float(np.percentile([row[1] for row in rows], 10))
    high = float(np.percentile([row[3] for row in rows], 90))
    margin = high - low
    region = "structures" if any(case.structure_intensities for case in cases) else "bodies"
    measured = f"the {region} lie between {low:.0f} and {high:.0f} HU"
    if 0 < 3 * margin < NARROW * (PAPER_HU[1] - PAPER_HU[0]):
        lower, upper = math.floor(low - margin), math.ceil(high + margin)
        return _window(modality, lower, upper), (
            f"{modality}: window {lower} to {upper} HU: {measured}, with that range again on each side."
        )
    if region == "bodies":
        # Every body contains lungs and bones, so its range does not tell that of the structures of interest.
        low, high = PAPER_HU
    lower, upper = round(min(PAPER_HU[0], low)), round(max(PAPER_HU[1], high))
    return _window(modality, lower, upper), (
        f"{modality}: window {lower} to {upper} HU: {measured}; the paper's {PAPER_HU[0]:g} to {PAPER_HU[1]:g} for "
        "soft tissue" + (", widened to hold them." if (lower, upper) != PAPER_HU else ".")
    )


def _window(modality: str, lower: float, upper: float) -> Normalization:
    return Normalization(modality=modality, scheme="window", lower=lower, upper=upper)


CONFIGURATIONS = ("full", "half")


@dataclass(frozen=True)
class PlannerOverrides:
    """What a user decides instead of the planner; None leaves it to the planner.

    Attributes:
        network: its settings, by default those of the default network; the planner may make it smaller.
        configuration: the default one, ``full`` or ``half``.
        spacing: of the common grid, mm, x, y, z.

    Raises:
        UnknownName: the configuration is neither ``full`` nor ``half``.
        BadArgument: the spacing is not three numbers above 0.
    """

    network: NetworkSettings = field(default_factory=default_settings)
    configuration: str | None = None
    spacing: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_choice("configuration", self.configuration, CONFIGURATIONS)
        if self.spacing is not None:
            if np.shape(self.spacing) != (3,):
                raise BadArgument("spacing", f"spacing is {self.spacing}: give three numbers of mm, for x, y and z.")
            for length in self.spacing:
                check_positive("spacing", length)


def make_plans(dataset: Dataset, fingerprint: Fingerprint, budget: Budget, overrides: PlannerOverrides) -> Plans:
    """Make the plans of a dataset; each decision's reason is in ``reasons``.

    The pre-alignment is not chosen yet: see :func:`llmreg.preprocessing.dataset_alignment.choose_prealignment`.

    Args:
        dataset: its pairing, its modalities and the cases it holds out, which influence no decision.
        fingerprint: of the dataset.
        budget: what training may cost.
        overrides: what the user decides.

    Raises:
        NotEnoughMemory: not even the smallest network fits.
    """
    cases = [case for case in fingerprint.cases if case.case not in dataset.held_out]
    reasons: dict[str, str] = {}
    normalization = {}
    for modality, name in sorted(dataset.modalities.items()):
        # Where all cases of a modality are held out, its normalisation can only be chosen by them.
        of_modality = [c for c in cases if c.modality == modality] or [
            c for c in fingerprint.cases if c.modality == modality
        ]
        normalization[modality], reasons[f"normalization.{modality}"] = plan_window(of_modality, name)
    loss, reasons["loss"] = plan_loss(fingerprint)
    budget = replace(budget, loss=loss)
    grid = aligned_grid(cases, fingerprint.pairs)
    aligned = grid is not None
    sizes, size_reasons = plan_sizes(cases, overrides.network, budget, aligned=aligned, spacing=overrides.spacing)
    reasons |= size_reasons
    displacement = displacement_voxels(fingerprint.pairs, sizes.spacing, aligned=aligned)
    default, reasons["default_configuration"] = choose_configuration(sizes, displacement, budget)
    if overrides.configuration is not None:
        default, reasons["default_configuration"] = overrides.configuration, f"{overrides.configuration}: requested."
    chosen = sizes.configurations[default]
    if chosen.memory_gb > budget.machine.memory_gb:
        reasons["default_configuration"] += (
            f" It needs about {chosen.memory_gb:.1f} GB, more than the {budget.machine.memory_gb:g} GB available."
        )
    checkpointed = [name for name, planned in sizes.configurations.items() if planned.recompute]
    reasons["recompute"] = (
        f"{' and '.join(checkpointed) or 'no configuration'}: gradient checkpointing recomputes the finest level where "
        f"training needs more than {budget.machine.memory_gb:g} GB otherwise."
    )
    batch_size, reasons["training.batch_size"] = plan_batch_size(chosen, sizes.network, budget)
    epochs, reasons["training.epochs"] = plan_epochs(chosen, sizes.network, budget)
    augmentation, reasons["augmentation.mirror_axes"] = plan_mirroring(cases)
    reference = choose_reference_case(cases, dataset.fixed_modality)
    reasons["prealignment"] = (
        f"The cases lie on one grid and count as aligned; others are brought to {reference} by the centre of the "
        "foreground, then rigidly, then affinely, by mutual information."
        if grid
        else "Not chosen yet: the label maps of some cases decide which method helps."
    )
    return Plans.model_validate(
        {
            "dataset_name": dataset.name,
            "plans_name": "default",
            "spacing": sizes.spacing,
            "size": sizes.size,
            "centre": grid.centre.tolist() if grid else (0.0, 0.0, 0.0),
            "fixed_modality": dataset.fixed_modality,
            "moving_modality": dataset.moving_modality,
            "labels": dataset.labels,
            "normalization": normalization,
            "prealignment": PreAlignment(
                method="affine", reference_case=reference, aligned_grid=grid.to_dict() if grid else None
            ),
            "configurations": sizes.configurations,
            "default_configuration": default,
            "network": sizes.network,
            "loss": loss,
            "training": Training(epochs=epochs, batch_size=batch_size),
            "augmentation": augmentation,
            "reasons": reasons,
        }
    )


# Pairs are mirrored where the anatomy overlaps its mirror image by at least this Dice.
SYMMETRIC = 0.85


def plan_loss(fingerprint: Fingerprint) -> tuple[LossSettings, str]:
    """Choose Dice where everything is annotated, the images' similarity where nothing is, and both in between."""
    if not fingerprint.annotated_cases or not fingerprint.annotated_structures:
        return LossSettings(dice=0.0, similarity=1.0), (
            "No case is annotated: image similarity (MIND-SSC) and smoothness, without Dice."
        )
    shares = fingerprint.annotated_structures.values()
    if min(shares) == 1:
        return LossSettings(), "Every case is annotated for every structure: soft Dice and smoothness, as in the paper."
    return LossSettings(similarity=1.0), (
        f"{100 * fingerprint.annotated_cases:.0f} % of the cases are annotated, the least annotated structure in "
        f"{100 * min(shares):.0f} %: soft Dice where structures are annotated, image similarity (MIND-SSC) everywhere, "
        "smoothness."
    )


def plan_mirroring(cases: Sequence[CaseFingerprint]) -> tuple[AugmentationSettings, str]:
    """Choose to mirror pairs where the anatomy is symmetric."""
    overlap = float(np.median([case.mirror_overlap for case in cases]))
    symmetric = overlap >= SYMMETRIC
    return AugmentationSettings(mirror_axes=("x",) if symmetric else ()), (
        f"The annotated region overlaps its left-right mirror image by {overlap:.2f} (Dice): "
        + ("pairs are mirrored too." if symmetric else "the anatomy is not symmetric, so pairs are not mirrored.")
    )


def paper_plans(plans: Plans) -> Plans:
    """Change plans to the settings of the paper of their network: its recipe, without pre-alignment, its windows.

    Settings that the paper leaves open stay, and all of them where no recipe is known.
    """
    plugin, content = plugin_of(plans.network), plans.model_dump() | {"plans_name": "paper"}
    if not plugin.recipe:
        reason = "No settings of a paper are known for this network: these are the planner's."
        return Plans.model_validate(content | {"reasons": content["reasons"] | {"paper": reason}})
    for modality in content["normalization"].values():
        if modality["scheme"] == "window" and is_ct(modality["modality"]) and modality["lower"] < -1:
            modality["lower"], modality["upper"] = PAPER_HU
    aligned = plans.prealignment.aligned_grid is not None
    # Images on different grids need at least a common centre to lie in the frame at all.
    content["prealignment"]["method"] = "identity" if aligned else "centre"
    content |= {section: content[section] | dict(changes) for section, changes in plugin.recipe.items()}
    if not aligned:
        content["reasons"]["paper"] += " Unlike in the paper, cases are centred, since they have different grids."
    return Plans.model_validate(content | {"network": plugin.as_published(plans.network)})
