"""llmreg_predict: register pairs of images with a trained model."""

import argparse
import os
from pathlib import Path

from llmreg.commands import shared_options, shell
from llmreg.errors import UserError

EXAMPLES = """\
  llmreg_predict -i in/ -o out/
  llmreg_predict -i pairs.csv -o out/ -d 2 -c half -f 0 1
  llmreg_predict -i in/ -o out/ --save field inverse warped --labels labels/
  llmreg_predict -i in/ -o out/ --refine 50 --diffeomorphic --uncertainty
  llmreg_predict -i in/ -o out/ --num_parts 4 --part_id 0
  llmreg_predict -i in/ -o out/ --all_pairs -m results/Dataset001_Name/llm_morph__default__half
"""
# These are repeated from llmreg.inference.registration, which takes long to import; a test compares both.
OUTPUTS = ("field", "inverse", "warped", "labels", "seen", "jacobian", "uncertainty", "transform", "prealignment")
DEFAULT_OUTPUTS = ("field", "warped", "seen", "prealignment")


def action(options: argparse.Namespace) -> None:
    """Predict the pairs, or this process's part of them."""
    from llmreg.devices import choose_device
    from llmreg.inference.pipeline import OutputOptions
    from llmreg.inference.predict_folder import PredictionOptions, predict_folder
    from llmreg.inference.predictor import RegistrationOptions

    model = shared_options.choose_model(options)
    if (options.num_parts is None) != (options.part_id is None):
        raise UserError("--num_parts and --part_id go together: of how many parts, and which one, from 0.")
    # torchrun sets these unless they are given.
    parts = options.num_parts or int(os.environ.get("WORLD_SIZE", "1"))
    part = int(os.environ.get("RANK", "0")) if options.part_id is None else options.part_id
    if part >= parts:
        raise UserError(f"--part_id {part} is not one of {parts} parts: they are counted from 0 (--num_parts).")
    # Two of the outputs also have options of their own.
    by_option = {"uncertainty": options.uncertainty, "labels": options.labels}
    outputs = tuple(output for output in OUTPUTS if output in options.save or by_option.get(output))
    prediction = PredictionOptions(
        registration=RegistrationOptions(options.refine, options.diffeomorphic, "uncertainty" in outputs),
        output=OutputOptions(outputs, options.format, options.label_interpolation),
        labels=options.labels,
        all_pairs=options.all_pairs,
        overwrite=options.overwrite,
        resume=options.resume,
        part=part,
        parts=parts,
        launched="RANK" in os.environ and options.part_id is None,
    )
    predict_folder(options.input, options.output, model, choose_device(options.device), prediction)


def build_parser() -> argparse.ArgumentParser:
    parser = shell.create_parser(
        "Register pairs: displacement fields in each fixed image's own grid (ITK, mm, LPS) and warped moving images.",
        EXAMPLES,
    )
    parser.add_argument("-i", "--input", type=Path, required=True, help="folder of images, or a pairs.csv")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the results")
    shared_options.add_model(parser.add_argument_group("which model"), "average")
    results = parser.add_argument_group("what is written, all of it on the fixed image's grid but for the inverse")
    results.add_argument(
        "--save",
        nargs="+",
        choices=OUTPUTS,
        default=DEFAULT_OUTPUTS,
        metavar="OUTPUT",
        help=f"any of {', '.join(OUTPUTS)} (default: {' '.join(DEFAULT_OUTPUTS)})",
    )
    results.add_argument(
        "--format",
        type=shared_options.field_format,
        default="itk",
        metavar="FORMAT",
        help="of the fields: itk (default, for SimpleITK, ANTs and Slicer), learn2reg, nifti-ras or npz",
    )
    results.add_argument(
        "--labels",
        type=Path,
        metavar="FOLDER",
        help="warp the moving images' label maps too, <case name>.nii.gz in this folder",
    )
    results.add_argument(
        "--label_interpolation",
        choices=("nearest", "linear"),
        default="nearest",
        help="linear interpolates each label and takes the largest, for smoother outlines (default: nearest)",
    )
    beyond = parser.add_argument_group("beyond the network's field")
    beyond.add_argument(
        "--refine",
        type=shell.whole,
        default=0,
        metavar="N",
        help="optimise the field for each pair by image similarity, in at most N steps (try 50)",
    )
    beyond.add_argument(
        "--diffeomorphic", action="store_true", help="the nearest smooth field that folds nowhere and has an inverse"
    )
    beyond.add_argument(
        "--uncertainty",
        action="store_true",
        help="estimate and write how far the field may be off (mm), from the spread over several folds",
    )
    pairs = parser.add_argument_group("which pairs")
    pairs.add_argument("--all_pairs", action="store_true", help="every fixed with every moving image")
    pairs.add_argument("--overwrite", action="store_true", help="replace predictions that the output folder holds")
    pairs.add_argument(
        "--continue", dest="resume", action="store_true", help="leave out pairs that are written already"
    )
    pairs.add_argument(
        "--num_parts", type=shell.positive, metavar="N", help="share the pairs among N processes or computers"
    )
    pairs.add_argument("--part_id", type=shell.whole, metavar="K", help="the part that this one does, from 0")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda when there is one)")
    return parser


main = shell.create_main(build_parser, action)
