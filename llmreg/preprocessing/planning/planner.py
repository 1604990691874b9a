"""The plans of a dataset: all decisions with their reasons."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from llmreg.data.dataset import Dataset
from llmreg.engine.prealignment import PreAlignment
from llmreg.networks.registry import NetworkSettings, default_settings
from llmreg.plans.plan_settings import Training
from llmreg.plans.plans import Plans
from llmreg.preprocessing.fingerprint import Fingerprint
from llmreg.preprocessing.planning.effort import Budget, plan_batch_size, plan_epochs
from llmreg.preprocessing.planning.frame_grid import aligned_grid, choose_reference_case
from llmreg.preprocessing.planning.loss_and_augmentation import plan_loss, plan_mirroring
from llmreg.preprocessing.planning.sizes import choose_configuration, displacement_voxels, plan_sizes
from llmreg.preprocessing.planning.windows import plan_window

CONFIGURATIONS = ("full", "half")


@dataclass(frozen=True)
class PlannerOverrides:
    """What a user decides instead of the planner; None leaves it to the planner.

    Attributes:
        network: its settings, by default those of the default network; the planner may make it smaller.
        configuration: the default one, ``full`` or ``half``.
        spacing: of the common grid, mm, x, y, z.
    """

    network: NetworkSettings = field(default_factory=default_settings)
    configuration: str | None = None
    spacing: tuple[float, ...] | None = None


def make_plans(
    dataset: Dataset, fingerprint: Fingerprint, budget: Budget, overrides: PlannerOverrides | None = None
) -> Plans:
    """Make the plans of a dataset; each decision's reason is in ``reasons``.

    The pre-alignment is not chosen yet: see :func:`llmreg.preprocessing.alignment_choice.choose_prealignment`.

    Args:
        dataset: its pairing, its modalities and the cases it holds out, which influence no decision.
        fingerprint: of the dataset.
        budget: what training may cost.
        overrides: what the user decides.
    """
    overrides = overrides or PlannerOverrides()
    cases = [case for case in fingerprint.cases if case.case not in dataset.held_out]
    reasons: dict[str, str] = {}
    normalization = {}
    for modality, name in sorted(dataset.modalities.items()):
        # Where all cases of a modality are held out, there is nothing else to choose its normalisation by.
        of_modality = [case for case in cases if case.modality == modality] or fingerprint.of_modality(modality)
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
    chosen = sizes.full if default == "full" else sizes.half
    if chosen.memory_gb > budget.machine.memory_gb:
        reasons["default_configuration"] += (
            f" It needs about {chosen.memory_gb:.1f} GB, more than the {budget.machine.memory_gb:g} GB available."
        )
    checkpointed = [name for name, planned in (("full", sizes.full), ("half", sizes.half)) if planned.recompute]
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
            "configurations": {"full": sizes.full, "half": sizes.half},
            "default_configuration": default,
            "network": sizes.network,
            "loss": loss,
            "training": Training(epochs=epochs, batch_size=batch_size),
            "augmentation": augmentation,
            "reasons": reasons,
        }
    )
