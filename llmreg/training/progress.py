"""The progress of a training in its folder: a JSON line per epoch and a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmreg.files import atomic_write

LOG_FILE = "training_log.jsonl"


def read_log(folder: Path, epochs: int | None = None) -> list[dict[str, Any]]:
    """Read the rows of the first epochs, because later ones than the checkpoint's are trained again; all when None."""
    path = folder / LOG_FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines[:epochs]]


def write_log(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows of all epochs."""
    with atomic_write(folder / LOG_FILE) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def plot(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write ``progress.png``: losses, validation Dice, folding, learning rate and seconds over epochs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    epochs = [row["epoch"] for row in rows]
    figure, axes = pyplot.subplots(2, 3, figsize=(15, 7), sharex=True, layout="constrained")
    measure = "similarity" if all(row["validation_dice"] is None for row in rows) else "dice"
    terms = sorted({key for row in rows for key in row if key.startswith("loss_")})
    panels = [
        ("Loss", ("loss",)),
        ("Its terms, before they are weighted", terms),
        (f"Validation {measure.title()}", (f"validation_{measure}", f"initial_{measure}")),
        ("Folded voxels in validation (%)", ("validation_folding",)),
        ("Learning rate", ("learning_rate",)),
        ("Seconds an epoch", ("seconds", "training_seconds")),
    ]
    for axis, (title, keys) in zip(axes.flat, panels, strict=True):
        for key in keys:
            # Some terms are known in some epochs only.
            values = [row.get(key) for row in rows]
            if any(value is not None for value in values):
                numbers = [float("nan") if value is None else value for value in values]
                axis.plot(epochs, numbers, label=key.removeprefix("loss_").replace("_", " "))
        axis.set_title(title)
        axis.grid(alpha=0.3)
        if len(axis.get_lines()) > 1:
            axis.legend()
    for axis in axes[1]:
        axis.set_xlabel("epoch")
    with atomic_write(folder / "progress.png") as temporary:
        figure.savefig(temporary, dpi=100)
    pyplot.close(figure)
