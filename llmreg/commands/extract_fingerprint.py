"""llmreg_extract_fingerprint: what the planner needs to know of a dataset."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from llmreg.commands import shared_options, shell

EXAMPLES = """\
  llmreg_extract_fingerprint -d 1
"""


def action(options: argparse.Namespace) -> None:
    from llmreg.preprocessing import preparation

    for dataset in options.datasets:
        preparation.fingerprint_dataset(dataset, options.num_processes)


def build_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = shared_options.create_dataset_parser("Read every case once and write dataset_fingerprint.json.", EXAMPLES)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with the words of the command line, or with ``argv``."""
    return shell.run(action, build_parser(), argv)


if __name__ == "__main__":
    raise SystemExit(main())
