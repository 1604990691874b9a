"""llmreg_apply: warp images, label maps and landmarks with fields and affine transforms."""

import argparse
import sys
from pathlib import Path

from llmreg.commands import shell

EXAMPLES = """\
  llmreg_apply -t disp_A_B.nii.gz -i B.nii.gz -o B_on_A.nii.gz
  llmreg_apply -t disp_A_B.nii.gz -i B.nii.gz --labels B_seg.nii.gz --interpolation label -o warped/
  llmreg_apply -t disp_A_B.nii.gz --landmarks landmarks_of_A.csv --convention ras -o landmarks_in_B.csv
  llmreg_apply -t disp_A_B.nii.gz --landmarks landmarks_of_B.csv --inverse -o landmarks_in_A.csv
  llmreg_apply -t disp_A_B.nii.gz -i A.nii.gz --inverse --like B.nii.gz -o A_on_B.nii.gz
  llmreg_apply -t disp_A_B.nii.gz B_to_C.tfm -i C.nii.gz -o C_on_A.nii.gz

Points of the fixed image A go through the transforms in the order given, which is also that of antsApplyTransforms, and
come out in the moving image; images are warped the other way, from the moving onto the fixed image. --inverse exchanges
the two directions.
"""


def action(options: argparse.Namespace) -> None:
    """Transform the files and list the results."""
    from llmreg.inference.apply import ApplyInputs, ApplyOptions, apply

    inputs = ApplyInputs(tuple(options.input), tuple(options.labels), tuple(options.landmarks))
    apply_options = ApplyOptions(
        options.interpolation,
        options.like,
        options.default,
        options.convention,
        options.fixed,
        options.moving,
        options.inverse,
        options.overwrite,
    )
    written = apply(options.transforms, inputs, options.output, apply_options)
    sys.stdout.writelines(f"{path}\n" for path in written)


def build_parser() -> argparse.ArgumentParser:
    parser = shell.create_parser(
        "Apply displacement fields and affine transforms, chained, to images, label maps and landmarks; images are "
        "resampled once.",
        EXAMPLES,
    )
    parser.add_argument(
        "-t",
        "--transforms",
        nargs="+",
        action="extend",
        type=Path,
        required=True,
        metavar="T",
        help="fields (.nii.gz .nrrd .mha .npz) and ITK transforms (.tfm .mat .txt .h5), fixed image first",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="a file, or a folder for several inputs")
    for flags, text in (
        (("-i", "--input"), "images"),
        (("--labels",), "label maps"),
        (("--landmarks",), "landmarks: .csv, or 3D Slicer's .fcsv and .mrk.json"),
    ):
        parser.add_argument(*flags, nargs="+", action="extend", default=[], type=Path, metavar="FILE", help=text)
    shell.accept_old_spelling(parser, "--points", dest="landmarks", nargs="+", action="extend", type=Path)
    parser.add_argument(
        "--like", type=Path, metavar="IMAGE", help="the result gets this image's grid (default: the first field's)"
    )
    parser.add_argument(
        "--interpolation",
        choices=("linear", "bspline", "nearest", "label"),
        help="default: linear for images, nearest for label maps; label: the label that weighs most, less jagged",
    )
    parser.add_argument(
        "--default", type=float, default=0.0, metavar="V", help="value of images where they were not seen (default: 0)"
    )
    parser.add_argument(
        "--convention",
        choices=("lps", "ras", "voxel"),
        default="lps",
        help="coordinates of .csv landmarks: mm as in ITK (lps, default) or NIfTI (ras), or voxels counted from 0",
    )
    parser.add_argument(
        "--fixed", type=Path, metavar="IMAGE", help="the image whose voxels the landmarks of the fixed image count"
    )
    parser.add_argument(
        "--moving", type=Path, metavar="IMAGE", help="the image whose voxels the landmarks of the moving image count"
    )
    parser.add_argument("--inverse", action="store_true", help="from the moving to the fixed image")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    return parser


main = shell.create_main(build_parser, action)
