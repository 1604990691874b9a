"""A tiny raw dataset: three subjects with two organs, each in MR and CT, every image on a grid of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llmreg.data.dataset import Dataset, load_dataset
from llmreg.devices import Machine
from llmreg.files import write_json
from llmreg.geometry.grid import Grid, array_to_image
from llmreg.images.image_files import write_image
from llmreg.plans.plans import Plans
from llmreg.preprocessing.fingerprint import Fingerprint, extract_fingerprint
from llmreg.preprocessing.planning.planner import PlannerOverrides, make_plans
from llmreg.preprocessing.planning.sizes import Budget

NAME = "Dataset001_Toy"
MODALITIES = {"0": "MR <3T> & more", "1": "CT"}
CASES = [f"Toy_{subject:04d}_{modality:04d}" for subject in (1, 2, 3) for modality in (0, 1)]


def write_raw(home: Path, spacing: float = 6.0, labelled: bool = True) -> None:
    """Three people with two organs, each in MR and CT, every image on a grid of its own."""
    folder = home / "raw" / NAME
    for name in CASES:
        rng = np.random.default_rng(int(name[4:8]))
        grid = Grid.from_centre(
            np.round(np.array((150, 132, 120)) / spacing), [spacing] * 3, rng.uniform(-40, 40, 3) * (1, 1, 0)
        )
        points = grid.physical_points() - grid.centre - rng.uniform(-8, 8, 3)
        labels = np.zeros(grid.shape, np.uint8)
        labels[(((points - (25, 0, 10)) / (20, 25, 20)) ** 2).sum(-1) < 1] = 1
        labels[(((points - (-25, -5, -15)) / (20, 18, 25)) ** 2).sum(-1) < 1] = 2
        body = ((points / (60, 50, 200)) ** 2).sum(-1) < 1
        tissues = ((0, 300, 500, 700), (-1000, 20, 90, 150))[int(name[-1])]
        values = np.array(tissues)[np.where(body, labels + 1, 0)] + 8 * rng.standard_normal(grid.shape) * body
        write_image(array_to_image(values.astype(np.int16), grid), folder / f"imagesTr/{name}.nii.gz")
        if labelled:
            write_image(array_to_image(labels, grid), folder / f"labelsTr/{name}.nii.gz")
    content = {
        "name": "Toy",
        "modality": MODALITIES,
        "labels": {"background": 0, "one": 1, "two": 2},
        "registration_direction": {"fixed": 0, "moving": 1},
        "pairings": "unpaired",
        "training": [{"image": f"./imagesTr/{name}.nii.gz"} for name in CASES],
    }
    write_json(folder / "dataset.json", content)


def prepare(home: Path, **options: object) -> tuple[Dataset, Fingerprint, Plans]:
    """Write the dataset below ``home`` and plan it, without the choice of a pre-alignment."""
    write_raw(home, **options)  # type: ignore[arg-type]
    dataset = load_dataset(home / "raw" / NAME)
    fingerprint = extract_fingerprint(dataset, 1)
    return (
        dataset,
        fingerprint,
        make_plans(dataset, fingerprint, Budget(Machine("cuda", 16, 8, True)), PlannerOverrides()),
    )


def replace_method(plans: Plans, method: str) -> Plans:
    """The plans with another pre-alignment."""
    return plans.model_copy(update={"prealignment": plans.prealignment.model_copy(update={"method": method})})
