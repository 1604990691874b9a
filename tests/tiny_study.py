"""A small dataset with a tiny language model, and how the command line trains on it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from llmreg.errors import UserError

NAME = "Dataset999_Demo"


def training(fold: str, name: str, home: Path, *more: str) -> list[str]:
    changes = [
        f"network.llm.source={home / 'llm'}",
        "network.llm.layers=[1,2]",
        "network.width=4",
        "training.steps_per_epoch=2",
        "training.validation_pairs=1",
        *more,
    ]
    return ["999", f"fold{fold}", "--set", *changes, "--as", name, "--workers", "0", "--device", "cpu"]


def model(home: Path, name: str = "tiny") -> Path:
    return home / "results" / NAME / f"llm_morph__{name}__half"


def check_refusal(capsys, *parts: str) -> None:
    """Check that the last command wrote one sentence, without a traceback, that contains all ``parts``."""
    error = capsys.readouterr().err
    line = [text for text in error.splitlines() if text.startswith("error: ")]
    assert len(line) == 1, error
    assert "Traceback" not in error
    for part in parts:
        assert part in line[0]


def run_in_this_process(arguments: Sequence[str]) -> None:
    """Run a command that :mod:`llmreg.comparison.command_lines` starts, without another process."""
    command, *options = arguments
    if import_module(f"llmreg.commands.{command}").main(options):
        raise UserError(f"llmreg_{command} failed")
