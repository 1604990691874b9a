"""llmreg_plan_and_preprocess: fingerprint, plans and preprocessed volumes of datasets."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from llmreg.commands import shell

EXAMPLES = """\
  llmreg_plan_and_preprocess -d 1
  llmreg_plan_and_preprocess -d 1 --llm meta-llama/Meta-Llama-3-8B --layers middle
  llmreg_plan_and_preprocess -d 1 -c half --memory-gb 10 --clean
  llmreg_plan_and_preprocess -d 1 2 --verify_dataset_integrity -np 4
"""


def action(options: argparse.Namespace) -> None:
    from llmreg.preprocessing import dataset_steps as pipeline

    # A name that is wrong is found out before the work.
    wishes = shell.wishes(options)
    for dataset in options.datasets:
        if options.verify_dataset_integrity:
            pipeline.verify(dataset, options.num_processes)
        pipeline.extract_fingerprint(dataset, options.num_processes, options.clean)
        pipeline.plan(dataset, options.num_processes, options.overwrite, wishes, options.memory_gb)
        pipeline.preprocess(dataset, "default", options.num_processes, options.clean)


def main(argv: Sequence[str] | None = None) -> int:
    parser = shell.dataset_parser("Fingerprint a dataset, plan its training and preprocess its cases.", EXAMPLES)
    parser.add_argument("--verify_dataset_integrity", action="store_true", help="check every image and label map first")
    parser.add_argument(
        "--clean", action="store_true", help="read and preprocess all cases again, not only those that changed"
    )
    shell.add_planning(parser)
    return shell.run(action, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
