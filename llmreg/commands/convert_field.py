"""llmreg_convert_field: displacement fields from one program's format to another's."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llmreg.commands import shell

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
# As llmreg.geometry.formats has them, whose import takes long.
FORMATS = ("itk", "learn2reg", "nifti-ras", "npz")


def action(options: argparse.Namespace) -> None:
    from llmreg.geometry.formats import convert

    written = convert(
        options.input, options.output, options.source, options.target, options.fixed, options.moving, options.overwrite
    )
    for path in written:
        sys.stdout.write(f"{path}\n")


def main(argv: Sequence[str] | None = None) -> int:
    parser = shell.parser("Convert displacement fields between the formats of registration programs.", EXAMPLES)
    parser.add_argument(
        "-i", "--input", nargs="+", action="extend", type=Path, required=True, metavar="FIELD", help="fields"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="a file, or a folder for several fields")
    parser.add_argument(
        "--from", dest="source", choices=FORMATS, metavar="FORMAT", help="default: what each file says itself"
    )
    parser.add_argument(
        "--to", dest="target", choices=FORMATS, required=True, metavar="FORMAT", help=", ".join(FORMATS)
    )
    parser.add_argument("--fixed", type=Path, metavar="IMAGE", help="the fixed image, to read learn2reg")
    parser.add_argument(
        "--moving",
        type=Path,
        metavar="IMAGE",
        help="the moving image, to read and write learn2reg where its grid is not the fixed one's",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    return shell.run(action, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
