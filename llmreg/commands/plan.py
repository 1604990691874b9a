"""llmreg_plan: plans.json from a fingerprint."""

import argparse

from llmreg.commands import shared_options, shell

EXAMPLES = """\
  llmreg_plan -d 1
  llmreg_plan -d 1 --memory_gb 10
  llmreg_plan -d 1 --llm /data/Qwen2-7B --layers 13 14 --overwrite
"""


def action(options: argparse.Namespace) -> None:
    """Plan every dataset."""
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
    parser = shared_options.create_dataset_parser(
        "Derive plans.json (and the paper's plans) from the fingerprint.", EXAMPLES
    )
    shared_options.add_planning(parser)
    return parser


main = shell.create_main(build_parser, action)
