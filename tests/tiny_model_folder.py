"""A model folder of a small network that was never trained, and images that it registers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import tiny_plans
import torch
from smooth import smooth_noise

from llmreg.geometry.grid import Grid, array_to_image
from llmreg.images.image_files import write_image
from llmreg.networks.factory import build_network
from llmreg.plans.plans import Plans, write_plans
from llmreg.training.checkpoints import TrainingState, save_checkpoint

# The padded size differs from its reverse, so that a shape in the wrong order of axes does not fit.
SIZE, PADDED = (14, 16, 12), (16, 16, 32)


def make_plans(field: str = "displacement", method: str = "centre", bidirectional: bool = False) -> Plans:
    """Plans of VoxelMorph on a frame that is smaller than the network's shape."""
    return tiny_plans.make_plans(
        SIZE,
        dataset_name="Dataset007_Tiny",
        spacing=(2, 2, 3),
        prealignment={"method": method, "reference_case": "Tiny_0001_0000"},
        configurations={"full": tiny_plans.make_configuration(PADDED)},
        network={"name": "voxelmorph", "size": "small", "field": field},
        training={"bidirectional": bidirectional, "autocast": "none"},
    )


def write_model(root: Path, plans: Plans, folds: Sequence[str] = ("0",), strength: float = 0.5) -> Path:
    """Write a model folder below ``root``; each fold has random weights, whose flows grow with ``strength``."""
    folder = root / plans.dataset_name / f"voxelmorph__{plans.plans_name}__full"
    write_plans(folder / "plans.json", plans)
    write_image(make_image(plans.frame, 0), folder / "reference.nii.gz")
    for seed, fold in enumerate(folds):
        network = make_network(plans, seed, strength)
        state = TrainingState(
            plans_digest=plans.digest("full"), llm_sha256="", configuration="full", fold=fold, epochs=3, epoch=3
        )
        save_checkpoint(folder / f"fold_{fold}", "final", state, network)
    return folder


def make_network(plans: Plans, seed: int = 0, strength: float = 0.5) -> torch.nn.Module:
    """The network of a fold of :func:`write_model`."""
    torch.manual_seed(seed)
    network = build_network(plans.network, PADDED[::-1], torch.device("cpu")).eval()
    for name, parameter in network.named_parameters():
        if name.startswith("head") and name.endswith("weight"):
            torch.nn.init.normal_(parameter, std=strength)
    return network


def make_image(grid: Grid, seed: int) -> sitk.Image:
    """A bright smooth object on a dark background."""
    rng = np.random.default_rng(seed)
    distance = np.linalg.norm((grid.physical_points() - grid.centre) / (np.array(grid.size) * grid.spacing), axis=-1)
    values = 100 * np.clip(1.5 - 3 * distance, 0, 1) + 20 * smooth_noise(rng, grid.shape, 2.0)
    return array_to_image(np.where(distance < 0.5, 200 + values, 0).astype(np.float32), grid)


def write_pair(folder: Path, subject: int = 1) -> tuple[Path, Path]:
    """Write a fixed and a moving image, each on a grid of its own, named as a folder of pairs has them."""
    grids = (
        Grid.from_centre((16, 14, 12), (2.0, 2.5, 3.0), (5.0, -8.0, 11.0)),
        Grid.from_centre((15, 17, 13), (2.2, 2.0, 2.8), (-20.0, 3.0, 40.0)),
    )
    paths = tuple(folder / f"Tiny_{subject:04d}_{modality:04d}.nii.gz" for modality in (0, 1))
    for seed, (grid, path) in enumerate(zip(grids, paths, strict=True)):
        write_image(make_image(grid, 10 * subject + seed), path)
    return paths[0], paths[1]
