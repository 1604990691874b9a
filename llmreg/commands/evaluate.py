"""llmreg_evaluate: overlap, distances and folding of a predictions folder, before and after."""

import argparse
import sys
from pathlib import Path

from llmreg.commands import shell

EXAMPLES = """\
  llmreg_evaluate -i predictions -l $llmreg_raw/Dataset002_BrainMRCT/labelsTr
  llmreg_evaluate -i predictions -l labels -o scores --num_processes 4
  llmreg_evaluate -i predictions -l labels --landmarks landmarks --convention voxel
"""


def build_parser() -> argparse.ArgumentParser:
    parser = shell.create_parser(
        "Compare the label maps and landmarks of every predicted pair before and after registration: Dice, HD95, ASSD "
        "and TRE (mm), share of folded voxels, SDlogJ, and Learn2Reg's figures as it computes them. Writes "
        "metrics.csv, summary.json and learn2reg.json.",
        EXAMPLES,
    )
    parser.add_argument("-i", "--input", type=Path, required=True, help="folder that llmreg_predict wrote")
    parser.add_argument(
        "-l",
        "--labels",
        type=Path,
        help="folder with a label map <case name>.nii.gz for each case, or a dataset's folder; "
        "may be left out when predict.json names the label maps, or there are landmarks",
    )
    parser.add_argument("-o", "--output", type=Path, help="where the results go (default: the input folder)")
    parser.add_argument(
        "--label_interpolation",
        choices=("nearest", "linear"),
        default="nearest",
        help="how label maps are warped (default: nearest); linear: the label that weighs most, less jagged",
    )
    parser.add_argument(
        "--landmarks",
        type=Path,
        metavar="FOLDER",
        help="landmarks <case name>.csv, .fcsv or .mrk.json, the same places in one order in both images of a pair; "
        "may be left out when predict.json names them",
    )
    shell.accept_old_spelling(parser, "--keypoints", dest="landmarks", type=Path)
    parser.add_argument(
        "--convention",
        choices=("lps", "ras", "voxel"),
        default="lps",
        help="coordinates of .csv landmarks: mm as in ITK (lps, default) or NIfTI (ras), or voxels counted from 0",
    )
    parser.add_argument(
        "--num_processes", type=shell.positive, default=2, help="pairs scored at the same time (default: 2)"
    )
    return parser


def action(options: argparse.Namespace) -> None:
    """Score the predictions and show the summary."""
    from llmreg.evaluation.evaluate import evaluate_folder
    from llmreg.evaluation.summary import format_summary

    summary = evaluate_folder(
        options.input,
        options.labels,
        options.output,
        options.num_processes,
        options.label_interpolation,
        options.landmarks,
        options.convention,
    )
    output = options.output or options.input
    sys.stdout.write(f"\n{format_summary(summary)}\nmetrics.csv, summary.json and learn2reg.json are in {output}\n")


main = shell.create_main(build_parser, action)
