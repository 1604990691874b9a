"""llmreg_plan_and_preprocess: fingerprint, plans and preprocessed volumes of datasets."""

import argparse

from llmreg.commands import shared_options, shell

EXAMPLES = """\
  llmreg_plan_and_preprocess -d 1
  llmreg_plan_and_preprocess -d 1 --llm meta-llama/Meta-Llama-3-8B --layers middle
  llmreg_plan_and_preprocess -d 1 -c half --memory_gb 10 --clean
  llmreg_plan_and_preprocess -d 1 2 --verify_dataset_integrity --num_processes 4
"""


def action(options: argparse.Namespace) -> None:
    """Plan and preprocess the datasets, one after the other."""
    from llmreg.api import plan, preprocess

    # A language model that does not exist is reported before the work begins.
    overrides = shared_options.read_overrides(options)
    for dataset in options.datasets:
        plan(
            dataset,
            overrides,
            memory_gb=options.memory_gb,
            overwrite=options.overwrite,
            verify=options.verify_dataset_integrity,
            clean=options.clean,
            processes=options.num_processes,
        )
        preprocess(dataset, clean=options.clean, processes=options.num_processes)


def build_parser() -> argparse.ArgumentParser:
    parser = shared_options.create_dataset_parser(
        "Fingerprint a dataset, plan its training and preprocess its cases.", EXAMPLES
    )
    parser.add_argument("--verify_dataset_integrity", action="store_true", help="check every image and label map first")
    parser.add_argument(
        "--clean", action="store_true", help="read and preprocess all cases again, not only those that changed"
    )
    shared_options.add_planning(parser)
    return parser


main = shell.create_main(build_parser, action)
