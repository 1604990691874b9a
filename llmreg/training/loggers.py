"""Where a training tells its progress: always in its folder and on the terminal, elsewhere when asked to."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from llmreg.errors import UserError
from llmreg.files import write_text
from llmreg.training import progress

Row = Mapping[str, Any]
# Drawing takes about a second, which short epochs should not wait for.
PLOT_SECONDS = 20.0


class Logger(Protocol):
    """Something that is told a row of named values after each epoch."""

    def epoch(self, row: Row) -> None: ...

    def close(self) -> None: ...


class FolderLogger:
    """``training_log.jsonl`` and ``progress.png`` in the fold's folder, the picture at most every 20 seconds.

    Args:
        folder: the fold's.
        epochs: done already; rows of later ones are trained again.
    """

    def __init__(self, folder: Path, epochs: int) -> None:
        self._folder = folder
        self._rows = progress.read_log(folder, epochs)
        # Whatever the picture shows that an earlier process may have left.
        self._drawn, self._drawn_at = 0, time.monotonic()

    def epoch(self, row: Row) -> None:
        self._rows.append(dict(row))
        progress.write_log(self._folder, self._rows)
        if time.monotonic() - self._drawn_at > PLOT_SECONDS:
            self._draw()

    def close(self) -> None:
        if self._drawn < len(self._rows):
            self._draw()

    def _draw(self) -> None:
        progress.plot(self._folder, self._rows)
        self._drawn, self._drawn_at = len(self._rows), time.monotonic()


class TerminalLogger:
    """A line an epoch that a person can read, above the progress bar."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs

    def epoch(self, row: Row) -> None:
        if row["validation_dice"] is not None:
            found = f"validation Dice {row['validation_dice']:.4f} (from {row['initial_dice']:.4f})"
        elif row["validation_similarity"] is not None:
            found = f"validation similarity loss {row['validation_similarity']:.4f}"
        else:
            found = "nothing to validate on"
        best = ", the best so far" if row["best"] else ""
        folded = "" if row["validation_folding"] is None else f", {row['validation_folding']:.2g} % folded"
        done = f"epoch {row['epoch']}/{self._epochs}: loss {row['loss']:.4f}"
        tqdm.write(f"{done}, {found}{best}{folded}, {row['seconds']:.0f} s")

    def close(self) -> None:
        pass


class TensorBoardLogger:
    """Scalars for TensorBoard in ``tensorboard/`` of the fold's folder; needs ``pip install llmreg[tensorboard]``."""

    def __init__(self, folder: Path, done: int, config: Mapping[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard") from error
        # Epochs after a checkpoint are trained, and shown, again.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def epoch(self, row: Row) -> None:
        for name, value in _numbers(row).items():
            self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbLogger:
    """A run of Weights & Biases, gone on with when the training is; needs ``pip install llmreg[wandb]``.

    The project is ``llmreg`` unless ``WANDB_PROJECT`` says otherwise.
    """

    def __init__(self, folder: Path, done: int, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb") from error
        known = folder / "wandb_run.txt"
        if not done or not known.exists():
            write_text(known, uuid.uuid4().hex)
        self._run = wandb.init(
            project=None if "WANDB_PROJECT" in os.environ else "llmreg",
            name="_".join(folder.parts[-3:]),
            id=known.read_text(),
            resume="allow",
            dir=str(folder),
            config=dict(config),
        )

    def epoch(self, row: Row) -> None:
        self._run.log(_numbers(row), step=row["epoch"])

    def close(self) -> None:
        self._run.finish()


OPTIONAL: dict[str, Callable[[Path, int, Mapping[str, Any]], Logger]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
}


def open_loggers(
    folder: Path, epochs: tuple[int, int], wanted: Sequence[str], config: Mapping[str, Any]
) -> list[Logger]:
    """The folder's and the terminal's loggers, and the wanted ones of :data:`OPTIONAL`.

    Args:
        folder: the fold's.
        epochs: how many are done, of how many.
        wanted: names.
        config: the plans, which the optional loggers may show.

    Raises:
        UserError: a package is not installed.
    """
    done, planned = epochs
    optional = [OPTIONAL[name](folder, done, config) for name in wanted]
    return [FolderLogger(folder, done), TerminalLogger(planned), *optional]


def _numbers(row: Row) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if isinstance(value, int | float)}


def _missing(package: str) -> UserError:
    return UserError(f"{package} is not installed: pip install 'llmreg[{package}]', or train without --log {package}.")
