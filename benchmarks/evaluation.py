"""Time and peak memory of scoring one pair: ours against MONAI's metrics and Google's surface-distance.

    python benchmarks/evaluation.py --labels 35 --shape 176 208 192

``ours`` is all of ``llmreg_evaluate`` for a pair without pre-alignment, landmarks included, reading of files left out.
``ours-surfaces`` is Dice, HD95 and ASSD of the warped label map alone, and ``ours-learn2reg`` its HD95 as Learn2Reg has
it: the same figures that ``monai`` and ``surface-distance`` compute. Each runs in a process of its own; its memory is
the peak of that process. surface-distance (the last version, 0.1) is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import zoom
from scipy.spatial import cKDTree

from llmreg.evaluation.metrics import dice_per_label
from llmreg.evaluation.pair_scores import evaluate_pair, landmark_errors
from llmreg.evaluation.surfaces import hd95_learn2reg_per_label, surface_distances_per_label
from llmreg.geometry.field import DisplacementField
from llmreg.geometry.grid import Grid, array_to_image, image_to_array
from llmreg.geometry.resampling import resample_labels
from llmreg.machine import available_cores, peak_memory_gb

# What computes the same figures as a peer.
RIVALS = {"monai": "ours-surfaces", "surface-distance": "ours-learn2reg"}
METHODS = ("ours", "ours-surfaces", "monai", "ours-learn2reg", "surface-distance")


def brain(shape: tuple[int, ...], labels: int) -> np.ndarray:
    """(z, y, x) uint8: an ellipsoid in a third of the image, cut up into the regions nearest to random points."""
    random = np.random.default_rng(0)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).astype(np.float32)
    middle = np.array(shape) / 2
    inside = (((index - middle) / (0.86 * middle)) ** 2).sum(axis=-1) < 1
    seeds = middle + 0.5 * middle * random.uniform(-1, 1, (labels, 3))
    regions = np.zeros(shape, np.uint8)
    regions[inside] = cKDTree(seeds).query(index[inside])[1] + 1
    return regions


def smooth_field(grid: Grid, seed: int, mm: float) -> DisplacementField:
    random = np.random.default_rng(seed)
    coarse = mm * random.normal(size=(3, 7, 8, 7))
    fine = [zoom(component, np.array(grid.shape) / component.shape, order=1) for component in coarse]
    return DisplacementField(np.stack(fine, axis=-1).astype(np.float32), grid)


def make_scoring(method: str, shape: tuple[int, ...], labels: int) -> Callable[[], object]:
    """Make the input of a method, and return what computes its figures."""
    grid = Grid(shape[::-1], (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    fixed = array_to_image(brain(shape, labels), grid)
    moving = resample_labels(fixed, grid, smooth_field(grid, 1, 3.0))
    field = smooth_field(grid, 2, 1.0)
    fixed_labels, ids = image_to_array(fixed), list(range(1, labels + 1))
    warped = image_to_array(resample_labels(moving, grid, field))
    spacing = grid.spacing
    points = grid.index_to_physical(np.random.default_rng(3).uniform(10, min(shape) - 10, (100, 3)))

    def ours() -> object:
        errors = landmark_errors(points, points, field, grid)
        return errors, evaluate_pair(fixed, moving, field, threads=available_cores())

    def ours_surfaces() -> object:
        return dice_per_label(warped, fixed_labels, ids), surface_distances_per_label(
            warped, fixed_labels, ids, spacing, available_cores()
        )

    def monai() -> object:
        import torch
        from monai.metrics import DiceMetric, HausdorffDistanceMetric, SurfaceDistanceMetric

        a, b = (torch.from_numpy(np.stack([volume == i for i in [0, *ids]])[None]) for volume in (warped, fixed_labels))
        dice = DiceMetric(include_background=False)(a, b)
        hd95 = HausdorffDistanceMetric(include_background=False, percentile=95)(a, b, spacing=spacing)
        assd = SurfaceDistanceMetric(include_background=False, symmetric=True)(a, b, spacing=spacing)
        return dice, hd95, assd

    def ours_learn2reg() -> object:
        return hd95_learn2reg_per_label(warped, fixed_labels, ids, warped, available_cores())

    def surface_distance() -> object:
        from surface_distance import compute_robust_hausdorff, compute_surface_distances

        return [
            compute_robust_hausdorff(compute_surface_distances(fixed_labels == i, warped == i, np.ones(3)), 95.0)
            for i in ids
        ]

    return dict(zip(METHODS, (ours, ours_surfaces, monai, ours_learn2reg, surface_distance), strict=True))[method]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=[176, 208, 192], help="z y x")
    parser.add_argument("--labels", type=int, default=35)
    parser.add_argument("--only", choices=METHODS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        warnings.simplefilter("ignore")
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(available_cores())
        score = make_scoring(arguments.only, tuple(arguments.shape), arguments.labels)
        wall, cpu = time.perf_counter(), time.process_time()
        score()
        figures = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "gib": peak_memory_gb()}
        sys.stdout.write(json.dumps(figures))
        return
    sys.stdout.write(f"{arguments.labels} labels on {'x'.join(map(str, arguments.shape))}\n")
    seconds = {}
    for method in METHODS:
        if method == "surface-distance" and importlib.util.find_spec("surface_distance") is None:
            continue
        command = [sys.executable, __file__, *sys.argv[1:], "--only", method]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        figures = f"{result['seconds']:8.2f} s, {result['cpu']:8.2f} s of CPU, {result['gib']:6.2f} GiB at its peak"
        seconds[method] = result["seconds"]
        ratio = f", {seconds[method] / seconds[RIVALS[method]]:.1f} times ours" if method in RIVALS else ""
        sys.stdout.write(f"{method:18}{figures}{ratio}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
