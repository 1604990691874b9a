"""Loggers: a training tells its progress in its folder and on the terminal, and elsewhere on request."""

import json
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from tqdm import tqdm

from llmreg.errors import MissingPackage
from llmreg.files import atomic_write, write_text

Row = Mapping[str, Any]
# Drawing takes about a second, for which short epochs should not wait.
PLOT_SECONDS = 20.0


class Logger(Protocol):
    """Something that is told a row of named values after each epoch."""

    def log_epoch(self, row: Row) -> None:
        """Log a row: ``epoch``, counted from 1, and whatever was measured in it."""

    def close(self) -> None:
        """Finish; nothing is logged any more."""


class FolderLogger:
    """``training_log.jsonl`` and ``progress.png`` in the fold's folder, the picture at most every 20 seconds.

    Args:
        folder: the fold's folder.
        epochs: number of epochs done; logged rows of later ones are dropped, because these are trained again.
        clock: returns seconds.
    """

    def __init__(self, folder: Path, epochs: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._clock = folder, clock
        self._rows = read_log(folder, epochs)
        # A picture of an earlier process may show other rows.
        self._rows_drawn, self._drawn_at = 0, clock()

    def log_epoch(self, row: Row) -> None:  # noqa: D102
        self._rows.append(dict(row))
        write_log(self._folder, self._rows)
        if self._clock() - self._drawn_at > PLOT_SECONDS:
            self._draw()

    def close(self) -> None:  # noqa: D102
        if self._rows_drawn < len(self._rows):
            self._draw()

    def _draw(self) -> None:
        plot(self._folder, self._rows)
        self._rows_drawn, self._drawn_at = len(self._rows), self._clock()


class TerminalLogger:
    """A line per epoch for people, above the progress bar.

    Args:
        epochs: number of epochs planned.
    """

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs

    def log_epoch(self, row: Row) -> None:  # noqa: D102
        if row["validation_dice"] is not None:
            validation = f"validation Dice {row['validation_dice']:.4f} (from {row['initial_dice']:.4f})"
        elif row["validation_similarity"] is not None:
            validation = f"validation similarity loss {row['validation_similarity']:.4f}"
        else:
            validation = "nothing to validate on"
        best = ", the best so far" if row["best"] else ""
        folding = "" if row["validation_folding"] is None else f", {row['validation_folding']:.2g} % folded"
        training = f"epoch {row['epoch']}/{self._epochs}: loss {row['loss']:.4f}"
        tqdm.write(f"{training}, {validation}{best}{folding}, {row['seconds']:.0f} s")

    def close(self) -> None:  # noqa: D102
        pass


class TensorBoardLogger:
    """Scalars for TensorBoard in ``tensorboard/`` of the fold's folder; needs ``pip install llmreg[tensorboard]``."""

    def __init__(self, folder: Path, epochs: int, config: Mapping[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingPackage("tensorboard", "this logger", "llmreg[tensorboard]") from error
        # Epochs after a checkpoint are trained, and shown, again.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=epochs + 1)

    def log_epoch(self, row: Row) -> None:  # noqa: D102
        for name, value in _numbers(row).items():
            self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    def close(self) -> None:  # noqa: D102
        self._writer.close()


class WandbLogger:
    """A run of Weights & Biases, resumed with the training; needs ``pip install llmreg[wandb]``.

    The project is ``llmreg`` unless ``WANDB_PROJECT`` says otherwise.
    """

    def __init__(self, folder: Path, epochs: int, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingPackage("wandb", "this logger", "llmreg[wandb]") from error
        id_file = folder / "wandb_run.txt"
        if not epochs or not id_file.exists():
            write_text(id_file, uuid.uuid4().hex)
        self._run = wandb.init(
            project=None if "WANDB_PROJECT" in os.environ else "llmreg",
            name="_".join(folder.parts[-3:]),
            id=id_file.read_text(),
            resume="allow",
            dir=str(folder),
            config=dict(config),
        )

    def log_epoch(self, row: Row) -> None:  # noqa: D102
        self._run.log(_numbers(row), step=row["epoch"])

    def close(self) -> None:  # noqa: D102
        self._run.finish()


# Loggers by name; each takes the fold's folder, the number of epochs done, and the plans, which it may show.
OPTIONAL_LOGGERS: dict[str, Callable[[Path, int, Mapping[str, Any]], Logger]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
}


def open_loggers(
    folder: Path, epochs: tuple[int, int], names: Sequence[str], config: Mapping[str, Any]
) -> list[Logger]:
    """Open the folder's and the terminal's loggers, and those of :data:`OPTIONAL_LOGGERS` that are named.

    Args:
        folder: the fold's folder.
        epochs: numbers of epochs done and planned.
        names: names of optional loggers.
        config: the plans, which optional loggers may show.

    Raises:
        MissingPackage: a package is not installed.
    """
    done, planned = epochs
    optional = [OPTIONAL_LOGGERS[name](folder, done, config) for name in names]
    return [FolderLogger(folder, done), TerminalLogger(planned), *optional]


def _numbers(row: Row) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if isinstance(value, int | float)}


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

    # Some terms are known in some epochs only, and a value that is never known gets no line.
    known = pd.DataFrame(rows).dropna(axis="columns", how="all")
    figure, axes = pyplot.subplots(2, 3, figsize=(15, 7), sharex=True, layout="constrained")
    measure = "dice" if "validation_dice" in known else "similarity"
    panels = [
        ("Loss", ("loss",)),
        ("Its terms, before they are weighted", sorted(key for key in known if key.startswith("loss_"))),
        (f"Validation {measure.title()}", (f"validation_{measure}", f"initial_{measure}")),
        ("Folded voxels in validation (%)", ("validation_folding",)),
        ("Learning rate", ("learning_rate",)),
        ("Seconds an epoch", ("seconds", "training_seconds")),
    ]
    for axis, (title, keys) in zip(axes.flat, panels, strict=True):
        for key in filter(known.__contains__, keys):
            axis.plot(known["epoch"], known[key], label=key.removeprefix("loss_").replace("_", " "))
        axis.set_title(title)
        axis.grid(alpha=0.3)
        if len(axis.get_lines()) > 1:
            axis.legend()
    for axis in axes[1]:
        axis.set_xlabel("epoch")
    with atomic_write(folder / "progress.png") as temporary:
        figure.savefig(temporary, dpi=100)
    pyplot.close(figure)
