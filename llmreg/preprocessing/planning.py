"""From a fingerprint to plans: every decision a small function with its reason."""

from __future__ import annotations

import numpy as np

from llmreg.dataset import Dataset
from llmreg.geometry.grid import Grid
from llmreg.network.config import NetworkSettings
from llmreg.preprocessing.fingerprint import CaseFingerprint, Fingerprint
from llmreg.preprocessing.normalization import is_ct
from llmreg.preprocessing.plans import AugmentationSettings, Configuration, Normalization, Plans, PreAlignment

# The paper's settings (section Data Preparation).
PAPER_HU = (-180.0, 400.0)
PAPER_PERCENTILES = (0.0, 95.0)
TOKEN_STRIDE = 16
# 192 x 160 x 192, the paper's abdomen grid: what a 24 GB GPU trains at full resolution.
MOST_VOXELS = 192 * 160 * 192
# Voxels of a common grid are at most this much longer or shorter than their geometric mean along an axis.
ANISOTROPY = 1.5
# Fitted to benchmarks/training_memory.py: width 16, the default LLM, batch 1, bfloat16 on a CPU; within 10 % there.
BASE_GB, GB_A_NETWORK_MVOXEL, GB_A_GRID_MVOXEL = 1.0, 1.45, 0.093
# Where a training step needs gigabytes, the finest level is computed twice: on 64^3 voxels in float32 (AMD EPYC), that
# took 0.57 of the network's activations.
RECOMPUTED_FROM, RECOMPUTED_SHARE = 500_000, 0.57
SYMMETRIC = 0.85
FEWEST_TOKENS_PER_AXIS = 2


def plan_window(cases: list[CaseFingerprint], modality: str) -> tuple[Normalization, str]:
    """CT: a HU window around the annotated structures, within the paper's; others: the paper's percentiles."""
    if not is_ct(modality):
        lower, upper = PAPER_PERCENTILES
        return (
            Normalization(modality=modality, scheme="percentiles", lower=lower, upper=upper),
            f"{modality}: clipped to each image's own foreground percentiles {lower:g} and {upper:g}, as in the paper.",
        )
    low = float(np.median([case.intensities[1] for case in cases]))
    high = float(np.median([case.intensities[3] for case in cases]))
    margin = high - low
    lower = round(max(PAPER_HU[0], low - margin))
    upper = round(min(PAPER_HU[1], high + margin))
    if upper - lower < 20:
        lower, upper = map(round, PAPER_HU)
    reason = (
        f"{modality}: window {lower} to {upper} HU, the structures' 5 to 95 percentiles ({low:.0f} to {high:.0f}) "
        f"with their range again on each side, within the paper's {PAPER_HU[0]:g} to {PAPER_HU[1]:g}."
    )
    return Normalization(modality=modality, scheme="window", lower=lower, upper=upper), reason


def shared_grid(cases: list[CaseFingerprint]) -> Grid | None:
    """The axis-aligned grid that all cases have in common, if they do: then they are taken to be aligned already."""
    first = Grid.from_dict(cases[0].grid)
    if not np.allclose(np.abs(first.direction).round(), np.abs(first.direction), atol=1e-3):
        return None
    return first if all(first.same_as(Grid.from_dict(case.grid)) for case in cases) else None


def plan_grid(cases: list[CaseFingerprint]) -> tuple[tuple[float, ...], tuple[int, ...], str]:
    """Spacing and size of the common grid, x, y, z."""
    shared = shared_grid(cases) is not None
    spacing = np.median([case.spacing for case in cases], axis=0)
    if shared:
        extent = np.asarray(cases[0].size) * spacing
    else:
        mean = float(np.prod(spacing) ** (1 / 3))
        spacing = np.clip(spacing, mean / ANISOTROPY, mean * ANISOTROPY)
        extent = np.percentile([case.foreground_extent for case in cases], 90, axis=0) * 1.05
    coarser = max(1.0, float(np.prod(extent / spacing) / MOST_VOXELS) ** (1 / 3))
    # Rounded first, so that a shared grid keeps its size to the voxel.
    size = np.ceil(np.round(extent / (spacing * coarser), 3)).astype(int)
    reason = (
        "All cases lie on one grid, which is taken over"
        if shared
        else f"Spacing: the cases' median, at most {ANISOTROPY:g} times anisotropic; size: the foreground's 90th "
        "percentile and 5 %"
    )
    if coarser > 1:
        reason += f"; coarsened {coarser:.2f} times to {MOST_VOXELS / 1e6:.1f} million voxels"
    return tuple((spacing * coarser).round(4).tolist()), tuple(size.tolist()), reason + "."


def plan_configuration(size: tuple[int, ...], downsampling: int) -> Configuration:
    """Pad a size to what the network can halve four times, at full (1) or half (2) resolution."""
    multiple = TOKEN_STRIDE * downsampling
    padded = [-(-n // multiple) * multiple for n in size]
    network = [n // downsampling for n in padded]
    tokens = [n // TOKEN_STRIDE for n in network]
    recompute = bool(np.prod(network) >= RECOMPUTED_FROM)
    activations = GB_A_NETWORK_MVOXEL * np.prod(network) / 1e6 * (RECOMPUTED_SHARE if recompute else 1.0)
    memory = BASE_GB + activations + GB_A_GRID_MVOXEL * np.prod(padded) / 1e6
    return Configuration.model_validate(
        dict(
            downsampling=downsampling,
            padded_size=padded,
            network_shape=network,
            token_grid=tokens,
            token_length=int(np.prod(tokens)),
            recompute=recompute,
            memory_gb=round(float(memory), 2),
        )
    )


def choose_configuration(half: Configuration) -> tuple[str, str]:
    if min(half.token_grid) < FEWEST_TOKENS_PER_AXIS:
        return "full", (
            f"full: half resolution would leave {min(half.token_grid)} token along an axis, too few to attend over."
        )
    return "half", (
        "half: displacement fields are smooth, so half resolution trains several times faster for about the same "
        "accuracy a step; train with '-c full' when time allows and structures are only a few voxels thick."
    )


def make_plans(dataset: Dataset, fingerprint: Fingerprint, name: str = "default") -> Plans:
    """The plans of a dataset; each decision's reason is in ``reasons``."""
    # What is held out must not shape a decision.
    cases = [case for case in fingerprint.cases if case.case not in dataset.held_out]
    reasons: dict[str, str] = {}
    normalization = {}
    for modality, modality_name in sorted(dataset.modalities.items()):
        normalization[modality], reasons[f"normalization.{modality}"] = plan_window(
            [case for case in cases if case.modality == modality], modality_name
        )
    spacing, size, reasons["grid"] = plan_grid(cases)
    full, half = plan_configuration(size, 1), plan_configuration(size, 2)
    default, reasons["default_configuration"] = choose_configuration(half)
    twice = [name for name, planned in (("full", full), ("half", half)) if planned.recompute]
    reasons["recompute"] = (
        f"{' and '.join(twice) or 'no configuration'}: networks of {RECOMPUTED_FROM / 1e6:g} million voxels or more "
        "compute their finest level twice, which saves memory and takes longer; set it to false where memory is ample."
    )
    shared = shared_grid(cases)
    fixed = [case for case in cases if case.modality == dataset.fixed_modality]
    middle = np.median([case.foreground_extent for case in fixed], axis=0)
    reference = min(fixed, key=lambda c: (float(np.abs(np.asarray(c.foreground_extent) - middle).sum()), c.case))
    reasons["prealignment"] = (
        f"The cases share one grid and are taken to be aligned; others are brought to {reference.case} by the centre "
        "of the foreground, then rigidly, then affinely, by mutual information."
        if shared
        else "Not chosen yet: the label maps of some cases tell which stages help."
    )
    overlap = float(np.median([case.mirror_overlap for case in cases]))
    mirror: tuple[str, ...] = ("x",) if overlap >= SYMMETRIC else ()
    reasons["augmentation.mirror_axes"] = (
        f"The annotated region overlaps its left-right mirror image by {overlap:.2f} (Dice): "
        + ("pairs are mirrored too." if mirror else "the anatomy is not symmetric, so pairs are not mirrored.")
    )
    return Plans.model_validate(
        dict(
            dataset_name=dataset.name,
            plans_name=name,
            spacing=spacing,
            size=size,
            centre=shared.centre.tolist() if shared else (0.0, 0.0, 0.0),
            fixed_modality=dataset.fixed_modality,
            moving_modality=dataset.moving_modality,
            labels=dataset.labels,
            normalization=normalization,
            prealignment=PreAlignment(
                method="affine", reference_case=reference.case, aligned_grid=shared.to_dict() if shared else None
            ),
            configurations={"full": full, "half": half},
            default_configuration=default,
            network=NetworkSettings(),
            augmentation=AugmentationSettings.model_validate({"mirror_axes": mirror}),
            reasons=reasons,
        )
    )


def paper_plans(plans: Plans) -> Plans:
    """The paper's settings: Dice + 0.1 L2, learning rate 1e-4, no pre-alignment, its windows, 50 epochs of 1,620 pairs.

    What the paper leaves open (normalisation of the convolutions, attention, rotary embedding) is as in the default.
    """
    content = plans.model_dump()
    for modality in content["normalization"].values():
        if modality["scheme"] == "window":
            modality["lower"], modality["upper"] = PAPER_HU
    content["plans_name"] = "paper"
    # Images on grids of their own need at least a common centre to be seen by the network at all.
    shared = plans.prealignment.aligned_grid is not None
    content["prealignment"]["method"] = "identity" if shared else "centre"
    content["loss"]["smoothness"] = 0.1
    content["training"] |= {
        "learning_rate": 1e-4, "schedule": "constant", "clip_gradient": None, "epochs": 50, "steps_per_epoch": 1620,
    }  # fmt: skip
    content["augmentation"] |= {"mirror_axes": (), "spatial_probability": 0.0, "intensity_probability": 0.0}
    content["reasons"]["paper"] = (
        "The paper's settings (Implementing Details); its abdomen has 1,620 pairs and 50 epochs, its brain 300 epochs. "
        + ("" if shared else "Against the paper, cases are centred: they share no grid.")
    ).strip()
    return Plans.model_validate(content)
