"""How well the estimated uncertainty agrees with the true error, where the true field is known.

    python benchmarks/uncertainty.py -d 2 -m results/Dataset002_BrainMRCT/llm_morph__default__half

A validation subject's two images lie on each other. The moving one is deformed by a smooth random field, so that the
field which brings it back is known; the model predicts it with its uncertainty, the spread over several folds. Prints,
for tenths of the voxels inside labels by estimated uncertainty, the root mean square of the true error, and writes a
plot.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr

from llmreg import DisplacementField, Grid, ImageInput, Predictor, RegistrationOptions, paths
from llmreg.data import splits
from llmreg.data.dataset import load_dataset
from llmreg.data.splits import SPLITS_FILE
from llmreg.geometry.field import invert_field
from llmreg.geometry.grid import image_to_array
from llmreg.geometry.resampling import resample_image
from llmreg.images.image_files import read_image
from llmreg.paths import preprocessed_dataset

BINS = 10


def random_field(grid: Grid, seed: int, millimetres: float, smooth: float) -> DisplacementField:
    """A smooth field whose vectors have that root mean square length."""
    rng = np.random.default_rng(seed)
    sigma = [smooth / s for s in grid.spacing[::-1]]
    vectors = np.stack([gaussian_filter(rng.normal(size=grid.shape), sigma) for _ in range(3)], axis=-1)
    vectors *= millimetres / np.sqrt((vectors**2).sum(axis=-1).mean())
    return DisplacementField(vectors.astype(np.float32), grid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", "--dataset", default="2")
    parser.add_argument("-m", "--model", type=Path, required=True)
    parser.add_argument("-f", "--fold", type=int, default=0, help="whose validation subjects are used")
    parser.add_argument("--folds", nargs="+", help="folds that predict, at least two (default: all trained ones)")
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--mm", type=float, default=4.0, help="root mean square length of the true displacement")
    parser.add_argument("--plot", type=Path, default=Path("uncertainty.png"))
    options = parser.parse_args()
    raw = load_dataset(paths.find_dataset_folder(options.dataset, paths.raw_folder()))
    folder = preprocessed_dataset(options.dataset)
    pairs = splits.read_splits(folder / SPLITS_FILE)[options.fold].validation_pairs
    predictor = Predictor.from_folder(options.model, options.folds, options=RegistrationOptions(uncertainty=True))
    fixed_cases = sorted({pair.fixed for pair in pairs})[: options.subjects]
    estimates, true_errors = [], []
    for number, name in enumerate(fixed_cases):
        fixed = raw.case(name)
        moving = next(
            case
            for case in raw.cases
            if case.subject == fixed.subject and case.modality == raw.case(pairs[0].moving).modality
        )
        images = [read_image(case.image) for case in (fixed, moving)]
        grid = Grid.from_image(images[0])
        true_field = random_field(grid, number, options.mm, 12.0)
        registration = predictor.predict(
            ImageInput(images[0], fixed.modality),
            ImageInput(resample_image(images[1], true_field.grid, true_field), moving.modality),
        )
        inside = image_to_array(read_image(fixed.label)) > 0
        errors = np.linalg.norm(registration.field.vectors - invert_field(true_field).vectors, axis=-1)
        assert registration.uncertainty is not None
        estimates.append(image_to_array(registration.uncertainty)[inside])
        true_errors.append(errors[inside])
    estimate, error = np.concatenate(estimates), np.concatenate(true_errors)
    edges = np.quantile(estimate, np.linspace(0, 1, BINS + 1))
    tenth = np.clip(np.searchsorted(edges, estimate, "right") - 1, 0, BINS - 1)
    means = np.array([[estimate[tenth == k].mean(), np.sqrt((error[tenth == k] ** 2).mean())] for k in range(BINS)])
    correlation = spearmanr(estimate[::50], error[::50]).statistic
    sys.stdout.write(
        f"{len(fixed_cases)} subjects, true displacement {options.mm:g} mm; estimated and true error, mm\n"
    )
    for row in means:
        sys.stdout.write(f"{row[0]:8.2f}{row[1]:8.2f}\n")
    sys.stdout.write(
        f"all: estimated {np.sqrt((estimate**2).mean()):.2f}, true {np.sqrt((error**2).mean()):.2f}; "
        f"rank correlation over voxels {correlation:.2f}\n"
    )
    figure = Figure(figsize=(5, 4.5), layout="constrained")
    axis = figure.subplots()
    highest = 1.1 * means.max()
    axis.plot([0, highest], [0, highest], color="0.6", linestyle="--", label="estimate = error")
    axis.plot(means[:, 0], means[:, 1], marker="o", label="tenths of the voxels")
    axis.set_xlabel("estimated uncertainty (mm)")
    axis.set_ylabel("true error, root mean square (mm)")
    axis.set_xlim(0, highest)
    axis.set_ylim(0, highest)
    axis.legend()
    figure.savefig(options.plot, dpi=110)


if __name__ == "__main__":
    main()
