"""llmreg_preprocess: the volumes that training reads."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from llmreg.commands import shared_options, shell

EXAMPLES = """\
  llmreg_preprocess -d 1
  llmreg_preprocess -d 1 -p paper
"""


def action(options: argparse.Namespace) -> None:
    from llmreg.preprocessing import preparation

    for dataset in options.datasets:
        preparation.preprocess_dataset(dataset, options.plans, options.num_processes)


def build_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = shared_options.create_dataset_parser("Bring every case into the plans' common frame.", EXAMPLES)
    parser.add_argument("-p", "--plans", default="default", help="name of the plans (default: default)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with the words of the command line, or with ``argv``."""
    return shell.run(action, build_parser(), argv)


if __name__ == "__main__":
    raise SystemExit(main())
