"""Loggers: a training tells its progress in its folder and on the terminal, and elsewhere on request."""

import json
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from llmreg.errors import MissingPackage
from llmreg.files import atomic_write, write_text

Row = Mapping[str, Any]
# Drawing takes about a second, for which short epochs should not wait.
PLOT_SECONDS = 20.0


class Logger:
    """Something that is told a row of named values after each epoch; this one keeps them to itself."""

    def log_epoch(self, row: Row) -> None:
        """Log a row: ``epoch``, counted from 1, and whatever was measured in it."""

    def close(self) -> None:
        """Finish; nothing is logged any more."""


class FolderLogger(Logger):
    """``training_log.jsonl`` and ``progress.png`` in the fold's folder, the picture at most every 20 seconds.

    Args:
        folder: the fold's folder.
        epochs: number of epochs done; logged rows of later ones are dropped, because these are trained again.
        clock: returns seconds.
    """

    def __init__(self, folder: Path, epochs: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._clock = folder, clock
        self._rows = read_log(folder, epochs)
        self._drawn_at = clock()

    def log_epoch(self, row: Row) -> None:  # noqa: D102
        self._rows.append(dict(row))
        write_text(self._folder / LOG_FILE, "".join(json.dumps(row) + "\n" for row in self._rows))
        if self._clock() - self._drawn_at > PLOT_SECONDS:
            plot(self._folder, self._rows)
            self._drawn_at = self._clock()

    def close(self) -> None:  # noqa: D102
        # The picture of an earlier process may show other rows, but there is none to replace before the first epoch.
        if self._rows:
            plot(self._folder, self._rows)


class TerminalLogger(Logger):
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
        tqdm.write(
            f"epoch {row['epoch']}/{self._epochs}: loss {row['loss']:.4f}, {validation}{best}{folding}, "
            f"{row['seconds']:.0f} s"
        )


class TensorBoardLogger(Logger):
    """Scalars for TensorBoard in ``tensorboard/`` of the fold's folder; needs ``pip install llmreg[tensorboard]``."""

    def __init__(self, folder: Path, epochs: int, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Epochs that follow the checkpoint are trained, and shown, again.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=epochs + 1)

    def log_epoch(self, row: Row) -> None:  # noqa: D102
        for name, value in _numbers(row).items():
            self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    def close(self) -> None:  # noqa: D102
        self._writer.close()


class WandbLogger(Logger):
    """A run of Weights & Biases, resumed with the training; needs ``pip install llmreg[wandb]``.

    The project is ``llmreg`` unless ``WANDB_PROJECT`` says otherwise.
    """

    def __init__(self, folder: Path, epochs: int, config: Mapping[str, Any]) -> None:
        import wandb

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


# Loggers by the names of their packages; each takes the fold's folder, the number of epochs done, and the plans, which
# it may show.
OPTIONAL_LOGGERS: dict[str, Callable[[Path, int, Mapping[str, Any]], Logger]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
}


def open_loggers(
    folder: Path, names: Sequence[str], config: Mapping[str, Any], *, done: int, planned: int
) -> list[Logger]:
    """Open the folder's and the terminal's loggers, and those of :data:`OPTIONAL_LOGGERS` that are named.

    Args:
        folder: the fold's folder.
        names: names of optional loggers.
        config: the plans, which optional loggers may show.
        done: number of epochs done.
        planned: number of epochs planned.

    Raises:
        MissingPackage: a package is not installed.
    """
    loggers: list[Logger] = [FolderLogger(folder, done), TerminalLogger(planned)]
    for name in names:
        try:
            loggers.append(OPTIONAL_LOGGERS[name](folder, done, config))
        except ImportError as error:
            raise MissingPackage(name, "this logger", f"llmreg[{name}]") from error
    return loggers


def _numbers(row: Row) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if isinstance(value, int | float)}


LOG_FILE = "training_log.jsonl"


def read_log(folder: Path, epochs: int | None = None) -> list[dict[str, Any]]:
    """Read the rows of the first epochs, because later ones than the checkpoint's are trained again; all when None."""
    path = folder / LOG_FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines[:epochs]]


def plot(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write ``progress.png``: losses, validation Dice, folding, learning rate and seconds over epochs."""
    from matplotlib.figure import Figure

    # Some terms are known in some epochs only, and a value that is never known gets no line.
    table = pd.DataFrame(rows).dropna(axis="columns", how="all")
    figure = Figure(figsize=(15, 7), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True)
    measure = "dice" if "validation_dice" in table else "similarity"
    panels = [
        ("Loss", ("loss",)),
        ("Its terms, before they are weighted", sorted(key for key in table if key.startswith("loss_"))),
        (f"Validation {measure.title()}", (f"validation_{measure}", f"initial_{measure}")),
        ("Folded voxels in validation (%)", ("validation_folding",)),
        ("Learning rate", ("learning_rate",)),
        ("Seconds an epoch", ("seconds", "training_seconds")),
    ]
    for axis, (title, keys) in zip(axes.flat, panels, strict=True):
        for key in filter(table.__contains__, keys):
            axis.plot(table["epoch"], table[key], label=key.removeprefix("loss_").replace("_", " "))
        axis.set_title(title)
        axis.grid(alpha=0.3)
        if len(axis.get_lines()) > 1:
            axis.legend()
    for axis in axes[1]:
        axis.set_xlabel("epoch")
    with atomic_write(folder / "progress.png") as temporary:
        figure.savefig(temporary, dpi=100)
