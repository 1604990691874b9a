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
from typing import Any

from llmreg.commands import shell
from llmreg.errors import UserError
from llmreg.files import read_json

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
    shorter = ["--epochs", str(options.epochs), "--set", f"training.steps_per_epoch={_STEPS}", "--as", _PLANS]
    run_step(folder, "train", str(DEMO_ID), "fold0", *shorter, *device)
    files = ["-i", str(raw / "imagesTs"), "-o", str(predictions)]
    run_step(folder, "predict", "-d", str(DEMO_ID), "-p", _PLANS, *files, *device)
    run_step(folder, "evaluate", "-i", str(predictions), "-l", str(raw / "labelsTs"))

    draw_first_pair(predictions, raw, folder / "demo.png")
    sys.stdout.write(
        f"\n{format_scores(read_json(predictions / 'summary.json'))}\n"
        f"Figure: {folder / 'demo.png'}\nFields: {predictions}\n"
        f"The demo took {time.monotonic() - began:.0f} s.\n"
    )


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
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("llmreg_")}
    began = time.monotonic()
    words = [sys.executable, "-m", "llmreg.commands", command, *arguments]
    code = subprocess.run(words, env=inherited | {"llmreg_home": str(folder)}, check=False).returncode
    if code:
        raise UserError(f"llmreg_{command} failed with exit code {code}: see its message above.")
    log.info("   took %.0f s", time.monotonic() - began)


def format_scores(summary: Mapping[str, Any]) -> str:
    """Format Dice and HD95 of people that were not trained on, before and after registration."""
    from llmreg.text_tables import format_table

    metrics = summary["metrics"]
    stages = [
        (title, metrics[f"{prefix}dice"]["mean"], metrics[f"{prefix}hd95_mm"]["mean"])
        for title, prefix in _STAGES
        if f"{prefix}dice" in metrics
    ]
    rows = [[title, f"{100 * dice:.1f}", "-" if hd95 is None else f"{hd95:.1f}"] for title, dice, hd95 in stages]
    *starts, registered = (dice for _, dice, _ in stages)
    return (
        f"{summary['num_pairs']} pairs of people that were not trained on\n\n"
        f"{format_table(['', 'Dice (%)', 'HD95 (mm)'], rows)}\n\n"
        # The better start counts, so that a bad pre-alignment does not make the gain look larger.
        f"Dice gained over the better of the two starts: {100 * (registered - max(starts)):+.1f} points\n"
        f"Folded voxels: {metrics['folding_percent']['mean']:.2f} %\n"
    )


def draw_first_pair(predictions: Path, raw: Path, target: Path) -> None:
    """Draw the first pair in one slice: fixed, moving, warped, contours before and after, and the warped grid."""
    import numpy as np
    from matplotlib.figure import Figure

    from llmreg.comparison.method_plots import save_figure
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
    air = float(image_to_array(moving).min())
    unmoved, warped = (resample_image(moving, field.grid, transform, default=air) for transform in (None, field))
    before, after = (resample_image(moving_label, field.grid, transform, "nearest") for transform in (None, field))
    # The sum of the roots of areas prefers a slice with several large organs to one with a huge or many tiny ones.
    position = max(
        range(len(labels)), key=lambda z: np.sqrt(np.unique(labels[z][labels[z] > 0], return_counts=True)[1]).sum()
    )
    mr: dict[str, Any] = {"cmap": "gray"}
    ct = mr | {"vmin": -150, "vmax": 250}
    panels = [
        (f"fixed: {pair.fixed}", fixed, mr),
        (f"moving: {pair.moving}", unmoved, ct),
        ("moving, warped", warped, ct),
        ("organs before (green: fixed, red: moving)", fixed, mr),
        ("organs after (green: fixed, red: moving)", fixed, mr),
    ]
    figure = Figure(figsize=(12, 8), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    aspect = fixed.GetSpacing()[1] / fixed.GetSpacing()[0]
    for axis, (title, image, style) in zip(axes, panels, strict=False):
        axis.imshow(image_to_array(image)[position], aspect=aspect, **style)
        axis.set_title(title, fontsize=10)
    for axis, moved in ((axes[3], before), (axes[4], after)):
        for outlined, colour in ((labels, "lime"), (image_to_array(moved), "red")):
            for label in np.unique(outlined[position][outlined[position] > 0]):
                axis.contour(outlined[position] == label, levels=[0.5], colors=colour, linewidths=1.2)

    # Contours of the moving x and y, drawn on the fixed image, show the moving image's straight grid after warping.
    moving_points = (field.grid.physical_points() + field.vectors)[position]
    for coordinate in (moving_points[..., 0], moving_points[..., 1]):
        levels = np.arange(np.floor(coordinate.min()), np.ceil(coordinate.max()), _GRID_LINES_MM)
        axes[5].contour(coordinate, levels=levels, colors="black", linestyles="solid", linewidths=0.7)
    axes[5].set_title(f"warped grid ({_GRID_LINES_MM:g} mm)", fontsize=10)
    axes[5].set_aspect(aspect)
    axes[5].invert_yaxis()
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    save_figure(figure, target)


main = shell.create_main(build_parser, action)
