"""``llmreg_evaluate``: Dice, HD95, folding and SDlogJ of a predictions folder, before and after."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llmreg.commands import shell

_EXAMPLES = """
  llmreg_evaluate -i predictions -l $llmreg_raw/Dataset002_BrainMRCT/labelsTr
  llmreg_evaluate -i predictions -l labels -o scores --num_processes 4
"""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = shell.parser(
        "Compare the label maps of every predicted pair before and after registration: Dice, HD95 (mm), share of "
        "folded voxels and SDlogJ. Writes metrics.csv and summary.json.",
        _EXAMPLES,
    )
    arguments.add_argument("-i", "--input", type=Path, required=True, help="folder that llmreg_predict wrote")
    arguments.add_argument(
        "-l", "--labels", type=Path,
        help="folder with a label map <case name>.nii.gz for each case, or a dataset's folder; "
        "may be left out when predict.json names the label maps",
    )  # fmt: skip
    arguments.add_argument("-o", "--output", type=Path, help="where the results go (default: the input folder)")
    arguments.add_argument(
        "--num_processes", type=shell.positive, default=2, help="pairs scored at the same time (default: 2)"
    )
    return shell.run(_evaluate, arguments, argv)


def _evaluate(options: argparse.Namespace) -> None:
    from llmreg.evaluation.evaluate import evaluate_folder
    from llmreg.evaluation.table import format_summary

    summary = evaluate_folder(options.input, options.labels, options.output, options.num_processes)
    output = options.output or options.input
    sys.stdout.write(f"\n{format_summary(summary)}\nmetrics.csv and summary.json are in {output}\n")


if __name__ == "__main__":
    sys.exit(main())
