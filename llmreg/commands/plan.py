"""llmreg_plan: plans.json from a fingerprint."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from llmreg.commands import shell

EXAMPLES = """\
  llmreg_plan -d 1
  llmreg_plan -d 1 --memory-gb 10
  llmreg_plan -d 1 --llm /data/Qwen2-7B --layers 13 14 --overwrite
"""


def action(options: argparse.Namespace) -> None:
    from llmreg.preprocessing import dataset_steps as pipeline

    wishes = shell.wishes(options)
    for dataset in options.datasets:
        pipeline.plan(dataset, options.num_processes, options.overwrite, wishes, options.memory_gb)


def main(argv: Sequence[str] | None = None) -> int:
    parser = shell.dataset_parser("Derive plans.json (and the paper's plans) from the fingerprint.", EXAMPLES)
    shell.add_planning(parser)
    return shell.run(action, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
