"""The command lines of the processes that a comparison starts, and how they are run.

This is the only file outside ``commands/`` that spells options: they are the words of other processes.
"""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from llmreg.comparison.benchmark_errors import MethodFailed
from llmreg.comparison.benchmark_settings import BenchmarkSettings
from llmreg.comparison.methods import Method
from llmreg.errors import Interrupted


def training_command(
    settings: BenchmarkSettings, method: Method, fold: str, changes: Sequence[str], name: str | None
) -> list[str]:
    """Spell the command that trains a method, or resumes its training.

    Args:
        settings: of the comparison.
        method: a learned one.
        fold: a number, or ``all``.
        changes: of the plans, ``key=value``.
        name: of the changed plans; None when there are no changes.
    """
    words = ["train", settings.dataset, fold, "-p", settings.plans, "--continue", "--workers", str(settings.workers)]
    # The pairs that count are predicted by the comparison; those of fold all are many, and were trained on.
    words += ["--no_validation", *_device_words(settings)]
    if settings.minutes is not None:
        words += ["--minutes", f"{settings.minutes:g}"]
    if name is not None:
        words += ["--set", *changes, "--as", name]
    if method.network is not None:
        words += ["--network", method.network]
    if settings.configuration is not None:
        words += ["-c", settings.configuration]
    return words


def prediction_command(
    settings: BenchmarkSettings, method: Method, pairs: Path, folder: Path, model: Path, fold: str
) -> list[str]:
    """Spell the command that predicts a table of pairs into a folder, those that are missing there."""
    words = ["predict", "-i", str(pairs), "-o", str(folder), "-m", str(model), "-f", fold, "--continue"]
    return [*words, "--save", "field", "prealignment", *prediction_options(method), *_device_words(settings)]


def prediction_options(method: Method) -> list[str]:
    """Spell the options by which a method predicts otherwise than by default."""
    return ["--refine", str(method.refinement_steps)] if method.refinement_steps else []


def registration_command(method: str, fixed: Path, moving: Path, field: Path) -> list[str]:
    """Spell the command that registers two images by a classical method and writes the field."""
    return [sys.executable, "-m", "llmreg.comparison.classical_runs", method, str(fixed), str(moving), str(field)]


def run_command(words: Sequence[str]) -> None:
    """Run a command of this package, showing its progress. The first word is its name.

    Raises:
        MethodFailed: the command failed.
        Interrupted: the command was told to stop; what it had done is kept.
    """
    command, *options = words
    process = subprocess.Popen([sys.executable, "-m", "llmreg.commands", command, *options], stdin=subprocess.DEVNULL)
    before = signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
    try:
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:
                # The terminal has told the command, too, which finishes its step and saves it.
                continue
    finally:
        signal.signal(signal.SIGTERM, before)
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM):
        raise Interrupted(code - 128 if code > 0 else -code, "run the command again to go on.")
    if code:
        raise MethodFailed(f"llmreg_{command}", f"ended with exit code {code}: its own message stands above.")


def _device_words(settings: BenchmarkSettings) -> list[str]:
    return [] if settings.device is None else ["--device", settings.device]
