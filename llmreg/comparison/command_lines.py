"""The command lines of the processes that a comparison starts, and how they are run.

This is the only file outside ``commands/`` that spells options: they are the words of other processes.
"""

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmreg.comparison.benchmark_settings import BenchmarkSettings
from llmreg.comparison.methods import Method
from llmreg.errors import Interrupted, UserError


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
    options = {
        "--device": settings.device,
        "--minutes": None if settings.minutes is None else f"{settings.minutes:g}",
        "--as": name,
        "--network": method.network,
        "-c": settings.configuration,
    }
    # The pairs that count are predicted by the comparison; those of fold all are many, and were trained on.
    return [*words, "--no_validation", *_spell_options(options), *(["--set", *changes] if changes else [])]


def prediction_command(
    settings: BenchmarkSettings, method: Method, pairs: Path, folder: Path, model: Path, fold: str
) -> list[str]:
    """Spell the command that predicts a table of pairs into a folder, those that are missing there."""
    words = ["predict", "-i", str(pairs), "-o", str(folder), "-m", str(model), "-f", fold, "--continue"]
    device = _spell_options({"--device": settings.device})
    return [*words, "--save", "field", "prealignment", *prediction_options(method), *device]


def prediction_options(method: Method) -> list[str]:
    """Spell the options by which a method predicts otherwise than by default."""
    return ["--refine", str(method.refinement_steps)] if method.refinement_steps else []


def _spell_options(options: Mapping[str, str | None]) -> list[str]:
    """Spell the options that have a value."""
    return [word for option, value in options.items() if value is not None for word in (option, value)]


def registration_command(method: str, fixed: Path, moving: Path, field: Path) -> list[str]:
    """Spell the command that registers two images by a classical method and writes the field."""
    return [sys.executable, "-m", "llmreg.comparison.classical_runs", method, str(fixed), str(moving), str(field)]


def run_command(words: Sequence[str]) -> None:
    """Run a command of this package, showing its progress. The first word is its name.

    Raises:
        UserError: the command failed.
        Interrupted: the command was told to stop; what it had done is kept.
    """
    process = subprocess.Popen([sys.executable, "-m", "llmreg.commands", *words], stdin=subprocess.DEVNULL)
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
        raise Interrupted(
            code - 128 if code > 0 else -code, f"llmreg_{words[0]} was stopped; what it had done is kept."
        )
    if code:
        raise UserError(f"llmreg_{words[0]} ended with exit code {code}: see its own message above.")
