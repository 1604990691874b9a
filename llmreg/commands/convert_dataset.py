"""llmreg_convert_dataset: a raw dataset from the files of a public download."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from llmreg.commands import shell

EXAMPLES = """\
  llmreg_convert_dataset learn2reg-abdomen-mrct downloads/AbdomenMRCT
  llmreg_convert_dataset learn2reg-abdomen-mrct downloads/AbdomenMRCT --protocol learn2reg -d 12
  llmreg_convert_dataset sr-reg downloads/SR-Reg
"""


def convert_abdomen(options: argparse.Namespace) -> None:
    from llmreg.data.converters.learn2reg_abdomen_mrct import convert

    convert(options.path, options.protocol, options.id)


def convert_brains(options: argparse.Namespace) -> None:
    from llmreg.data.converters.sr_reg import convert

    convert(options.path, options.split, options.id)


def main(argv: Sequence[str] | None = None) -> int:
    parser = shell.parser(
        "Make a raw dataset in $llmreg_raw of a public download, with the cases of its protocol held out for testing. "
        "Images are linked where the disk allows it, and never changed.",
        EXAMPLES,
    )
    datasets = parser.add_subparsers(title="datasets", metavar="DATASET", required=True)

    abdomen = datasets.add_parser("learn2reg-abdomen-mrct", help="Learn2Reg's AbdomenMRCT: MR and CT of the abdomen")
    abdomen.add_argument(
        "--protocol",
        choices=("paper", "learn2reg"),
        default="paper",
        help="paper: every MR with every CT, 10 of each for testing (default); learn2reg: the images of one person, "
        "the official validation pairs held out",
    )
    abdomen.set_defaults(convert=convert_abdomen)

    brains = datasets.add_parser("sr-reg", help="SR-Reg of MambaMorph: MR and CT of the brain")
    brains.add_argument(
        "--split",
        type=Path,
        metavar="FILE",
        help="JSON file with 'test' and 'validation', lists of subjects by name, instead of llmreg's own draw",
    )
    brains.set_defaults(convert=convert_brains)

    for made, default in ((abdomen, "101, or 102 for learn2reg"), (brains, "103")):
        made.add_argument("path", type=Path, metavar="PATH", help="folder of the unpacked download")
        made.add_argument("-d", "--id", type=shell.positive, metavar="D", help=f"the dataset's id (default: {default})")
    return shell.run(lambda options: options.convert(options), parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
