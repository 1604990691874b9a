"""llmreg_extract_fingerprint: what the planner needs to know of a dataset."""

import argparse

from llmreg.commands import shared_options, shell

EXAMPLES = """\
  llmreg_extract_fingerprint -d 1
"""


def action(options: argparse.Namespace) -> None:
    """Write the fingerprint of every dataset."""
    from llmreg.preprocessing import preparation

    for dataset in options.datasets:
        preparation.fingerprint_dataset(dataset, options.num_processes)


def build_parser() -> argparse.ArgumentParser:
    return shared_options.create_dataset_parser("Read every case once and write dataset_fingerprint.json.", EXAMPLES)


main = shell.create_main(build_parser, action)
