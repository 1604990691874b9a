"""llmreg_preprocess: the volumes that training reads."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from llmreg.commands import shell

EXAMPLES = """\
  llmreg_preprocess -d 1
  llmreg_preprocess -d 1 -p paper
"""


def action(options: argparse.Namespace) -> None:
    from llmreg.preprocessing import dataset_steps as pipeline

    for dataset in options.datasets:
        pipeline.preprocess(dataset, options.plans, options.num_processes)


def main(argv: Sequence[str] | None = None) -> int:
    parser = shell.dataset_parser("Bring every case into the plans' common frame.", EXAMPLES)
    parser.add_argument("-p", "--plans", default="default", help="name of the plans (default: default)")
    return shell.run(action, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
