"""llmreg_extract_fingerprint: what the planner needs to know of a dataset."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from llmreg.commands import shell

EXAMPLES = """\
  llmreg_extract_fingerprint -d 1
"""


def action(options: argparse.Namespace) -> None:
    from llmreg.preprocessing import dataset_steps as pipeline

    for dataset in options.datasets:
        pipeline.extract_fingerprint(dataset, options.num_processes)


def main(argv: Sequence[str] | None = None) -> int:
    parser = shell.dataset_parser("Read every case once and write dataset_fingerprint.json.", EXAMPLES)
    return shell.run(action, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
