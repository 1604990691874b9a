"""llmreg_demo: everything once on made-up people, through the public commands, in a few minutes."""

import argparse
import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmreg.commands import shell
from llmreg.errors import UserError
from llmreg.files import atomic_write, read_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

EXAMPLES = """\
  llmreg_demo
  llmreg_demo -o /tmp/demo --epochs 30
"""
_SUBJECTS, _SEED = 16, 7
_EPOCHS, _STEPS = 8, 50
_PLANS, _PREDICTIONS = "demo", "demo_predictions"
_GRID_LINES_MM = 10.0
_STAGES = (
    ("without any transform", "initial_"),
    ("after pre-alignment alone", "prealigned_"),
    ("after registration", ""),
)


def build_parser() -> argparse.ArgumentParser:
    parser = shell.create_parser(
        "Write a small dataset of made-up people (MR-like and CT-like), then plan, train, predict and evaluate with "
        "the public commands. Shows Dice before and after on people that were not trained on, and writes demo.png.",
        EXAMPLES,
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("llmreg_demo"),
        metavar="FOLDER",
        help="everything goes there; an earlier demo in it is replaced (default: ./llmreg_demo)",
    )
    parser.add_argument(
        "--epochs", type=shell.positive, default=_EPOCHS, help=f"epochs of {_STEPS} steps (default: {_EPOCHS})"
    )
    parser.add_argument("--device", help="as in llmreg_train, for example cpu or cuda:0 (default: its own choice)")
    return parser


def action(options: argparse.Namespace) -> None:
    """Run the demo and show its scores."""
    from llmreg.data.synthetic import DEMO_FOLDER, DEMO_ID, HELD_OUT, write_demo_dataset

    began = time.monotonic()
    folder = options.output.expanduser().resolve()
    clear_folder(folder, DEMO_FOLDER)
    raw, predictions = folder / "raw" / DEMO_FOLDER, folder / _PREDICTIONS
    device = ["--device", options.device] if options.device else []

    log.info(
        "== Writing %d made-up people to train on and %d to keep back, each as MR and as CT, to %s",
        _SUBJECTS,
        HELD_OUT,
        raw,
    )
    write_demo_dataset(folder / "raw", _SUBJECTS, _SEED)
    log.info("   took %.0f s", time.monotonic() - began)

    # Half resolution trains in the few minutes that the demo has.
    run_step(folder, "plan_and_preprocess", "-d", str(DEMO_ID), "-c", "half", "--verify_dataset_integrity")
    shorter = ["--set", f"training.steps_per_epoch={_STEPS}", "--as", _PLANS]
    run_step(folder, "train", str(DEMO_ID), "fold0", "--epochs", str(options.epochs), *shorter, *device)
    files = ["-i", str(raw / "imagesTs"), "-o", str(predictions)]
    run_step(folder, "predict", "-d", str(DEMO_ID), "-p", _PLANS, *files, *device)
    run_step(folder, "evaluate", "-i", str(predictions), "-l", str(raw / "labelsTs"))

    draw_first_pair(predictions, raw, folder / "demo.png")
    sys.stdout.write(f"\n{format_scores(read_json(predictions / 'summary.json'))}\n")
    sys.stdout.write(f"Figure: {folder / 'demo.png'}\nFields: {predictions}\n")
    sys.stdout.write(f"The demo took {time.monotonic() - began:.0f} s.\n")


def clear_folder(folder: Path, dataset: str) -> None:
    """Delete an earlier demo in the folder. Raises UserError when the folder holds anything but a demo."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not (folder / "raw" / dataset).is_dir():
            raise UserError(f"{folder} holds something else than a demo: choose a new or empty folder with -o.")
        earlier = [*(folder / kind / dataset for kind in ("preprocessed", "results", "raw")), folder / _PREDICTIONS]
        for path in filter(Path.exists, earlier):
            shutil.rmtree(path)
    except OSError as error:
        raise UserError(
            f"Cannot write {folder}: {error.strerror}. Choose another folder for the demo with -o."
        ) from error


def run_step(folder: Path, command: str, *arguments: str) -> None:
    """Run a public command as a user would, with ``folder`` as its home."""
    log.info("\n== %s", shlex.join([f"llmreg_{command}", *arguments]))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("llmreg_")}
    environment["llmreg_home"] = str(folder)
    began = time.monotonic()
    words = [sys.executable, "-m", "llmreg.commands", command, *arguments]
    done = subprocess.run(words, env=environment, check=False)
    if done.returncode:
        raise UserError(f"llmreg_{command} failed with exit code {done.returncode}: see its message above.")
    log.info("   took %.0f s", time.monotonic() - began)


def format_scores(summary: Mapping[str, Any]) -> str:
    """Format Dice and HD95 of people that were not trained on, before and after registration."""
    from llmreg.text_tables import format_table

    metrics = summary["metrics"]
    stages = [(title, prefix) for title, prefix in _STAGES if prefix + "dice" in metrics]
    rows = []
    for title, prefix in stages:
        dice, hd95 = metrics[f"{prefix}dice"]["mean"], metrics[f"{prefix}hd95_mm"]["mean"]
        rows.append([title, f"{100 * dice:.1f}", "-" if hd95 is None else f"{hd95:.1f}"])
    # The better start counts, so that a bad pre-alignment does not make the gain look larger.
    start = max(metrics[f"{prefix}dice"]["mean"] for _, prefix in stages if prefix)
    return (
        f"{summary['num_pairs']} pairs of people that were not trained on\n\n"
        f"{format_table(['', 'Dice (%)', 'HD95 (mm)'], rows)}\n\n"
        f"Dice gained over the better of the two starts: {100 * (metrics['dice']['mean'] - start):+.1f} points\n"
        f"Folded voxels: {metrics['folding_percent']['mean']:.2f} %\n"
    )


def draw_first_pair(predictions: Path, raw: Path, target: Path) -> None:
    """Draw the first pair in one slice: fixed, moving, warped, contours before and after, and the warped grid."""
    import numpy as np
    import SimpleITK as sitk
    from matplotlib.figure import Figure

    from llmreg.geometry.grid import image_to_array
    from llmreg.geometry.resampling import resample_image
    from llmreg.images.fields import read_field
    from llmreg.images.image_files import read_image
    from llmreg.predictions import read_predictions

    pair = read_predictions(predictions).pairs[0]
    fixed, moving = (read_image(raw / "imagesTs" / f"{case}.nii.gz") for case in (pair.fixed, pair.moving))
    fixed_label, moving_label = (read_image(raw / "labelsTs" / f"{case}.nii.gz") for case in (pair.fixed, pair.moving))
    field = read_field(predictions / str(pair.field))
    labels = image_to_array(fixed_label)
    # The sum of the roots of areas prefers a slice with several large organs to one with a huge or many tiny ones.
    position = max(
        range(len(labels)), key=lambda z: np.sqrt(np.unique(labels[z][labels[z] > 0], return_counts=True)[1]).sum()
    )

    def take_slice(image: sitk.Image) -> NDArray[Any]:
        return image_to_array(image)[position]

    def resample_unmoved(image: sitk.Image, interpolator: int, outside: float) -> sitk.Image:
        return sitk.Resample(image, fixed, sitk.Transform(), interpolator, outside)

    air = float(image_to_array(moving).min())
    before = take_slice(resample_unmoved(moving_label, sitk.sitkNearestNeighbor, 0))
    after = take_slice(resample_image(moving_label, field.grid, field, "nearest"))
    mr, ct = {"cmap": "gray"}, {"cmap": "gray", "vmin": -150, "vmax": 250}
    panels: list[tuple[str, NDArray[Any], dict[str, Any], NDArray[Any] | None]] = [
        (f"fixed: {pair.fixed}", take_slice(fixed), mr, None),
        (f"moving: {pair.moving}", take_slice(resample_unmoved(moving, sitk.sitkLinear, air)), ct, None),
        ("moving, warped", take_slice(resample_image(moving, field.grid, field, default=air)), ct, None),
        ("organs before", take_slice(fixed), mr, before),
        ("organs after", take_slice(fixed), mr, after),
    ]
    figure = Figure(figsize=(12, 8), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    aspect = fixed.GetSpacing()[1] / fixed.GetSpacing()[0]
    for axis, (title, picture, style, organs) in zip(axes, panels, strict=False):
        axis.imshow(picture, aspect=aspect, **style)
        if organs is not None:
            for label in np.unique(labels[labels > 0]):
                axis.contour(labels[position] == label, levels=[0.5], colors="lime", linewidths=1.2)
                if (organs == label).any():
                    axis.contour(organs == label, levels=[0.5], colors="red", linewidths=1.2)
            title += " (green: fixed, red: moving)"
        axis.set_title(title, fontsize=10)

    # Contours of the moving x and y, drawn on the fixed image, show the moving image's straight grid after warping.
    moving_points = (field.grid.physical_points() + field.vectors)[position]
    for component in (0, 1):
        coordinate = moving_points[..., component]
        levels = np.arange(np.floor(coordinate.min()), np.ceil(coordinate.max()), _GRID_LINES_MM)
        axes[5].contour(coordinate, levels=levels, colors="black", linestyles="solid", linewidths=0.7)
    axes[5].set_title(f"warped grid ({_GRID_LINES_MM:g} mm)", fontsize=10)
    axes[5].set_aspect(aspect)
    axes[5].invert_yaxis()
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    with atomic_write(target) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


main = shell.create_main(build_parser, action)
