"""llmreg_plan: plans.json from a fingerprint."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from llmreg.commands import shared_options, shell

EXAMPLES = """\
  llmreg_plan -d 1
  llmreg_plan -d 1 --memory_gb 10
  llmreg_plan -d 1 --llm /data/Qwen2-7B --layers 13 14 --overwrite
"""


def action(options: argparse.Namespace) -> None:
    from llmreg.preprocessing import preparation

    overrides = shared_options.read_overrides(options)
    for dataset in options.datasets:
        preparation.plan_dataset(
            dataset,
            options.num_processes,
            overwrite=options.overwrite,
            overrides=overrides,
            memory_gb=options.memory_gb,
        )


def build_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = shared_options.create_dataset_parser(
        "Derive plans.json (and the paper's plans) from the fingerprint.", EXAMPLES
    )
    shared_options.add_planning(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with the words of the command line, or with ``argv``."""
    return shell.run(action, build_parser(), argv)


if __name__ == "__main__":
    raise SystemExit(main())
