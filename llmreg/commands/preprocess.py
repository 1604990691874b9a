"""llmreg_preprocess: the volumes that training reads."""

import argparse

from llmreg.commands import shared_options, shell

EXAMPLES = """\
  llmreg_preprocess -d 1
  llmreg_preprocess -d 1 -p paper
"""


def action(options: argparse.Namespace) -> None:
    """Preprocess every dataset."""
    from llmreg.preprocessing import preparation

    for dataset in options.datasets:
        preparation.preprocess_dataset(dataset, options.plans, options.num_processes)


def build_parser() -> argparse.ArgumentParser:
    parser = shared_options.create_dataset_parser("Bring every case into the plans' common frame.", EXAMPLES)
    parser.add_argument("-p", "--plans", default="default", help="name of the plans (default: default)")
    return parser


main = shell.create_main(build_parser, action)
