"""llmreg_convert_field: displacement fields from one program's format to another's."""

import argparse
import sys
from pathlib import Path

from llmreg.commands import shared_options, shell

EXAMPLES = """\
  llmreg_convert_field -i disp_A_B.nii.gz -o disp_A_B.npz --to npz
  llmreg_convert_field -i out/disp_*.nii.gz -o learn2reg/ --to learn2reg
  llmreg_convert_field -i disp_0001_0002.npz -o field.nii.gz --from learn2reg --to itk --fixed fixed.nii.gz
  llmreg_convert_field -i warp_ras.nii.gz -o warp_itk.nii.gz --from nifti-ras --to itk

formats:
  itk        vectors in mm, LPS: SimpleITK, ANTs, 3D Slicer (.nii.gz .nii .nrrd .mha)
  nifti-ras  vectors in mm, RAS: NiBabel, nitransforms (.nii.gz .nii)
  learn2reg  (X, Y, Z, 3) in voxels, without geometry: the challenge's evaluation (.nii.gz .nii .npz)
  npz        vectors (z, y, x, 3) in mm, LPS, size, spacing, origin, direction: NumPy, PyTorch (.npz)
"""


def action(options: argparse.Namespace) -> None:
    """Convert the fields and list the results."""
    from llmreg.images.fields import convert_fields

    written = convert_fields(
        options.input,
        options.output,
        options.source,
        options.target,
        options.fixed,
        options.moving,
        overwrite=options.overwrite,
    )
    sys.stdout.writelines(f"{path}\n" for path in written)


def build_parser() -> argparse.ArgumentParser:
    parser = shell.create_parser("Convert displacement fields between the formats of registration programs.", EXAMPLES)
    parser.add_argument(
        "-i", "--input", nargs="+", action="extend", type=Path, required=True, metavar="FIELD", help="fields"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="a file, or a folder for several fields")
    parser.add_argument(
        "--from",
        dest="source",
        type=shared_options.field_format,
        metavar="FORMAT",
        help="default: what each file says itself",
    )
    parser.add_argument(
        "--to",
        dest="target",
        type=shared_options.field_format,
        required=True,
        metavar="FORMAT",
        help="itk, learn2reg ...",
    )
    parser.add_argument("--fixed", type=Path, metavar="IMAGE", help="the fixed image, to read learn2reg")
    parser.add_argument(
        "--moving",
        type=Path,
        metavar="IMAGE",
        help="the moving image, to read and write learn2reg where its grid is not the fixed one's",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    return parser


main = shell.create_main(build_parser, action)
