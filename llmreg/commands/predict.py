"""llmreg_predict: register pairs of images with a trained model."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from llmreg.commands import shell
from llmreg.errors import UserError

EXAMPLES = """\
  llmreg_predict -i in/ -o out/
  llmreg_predict -i pairs.csv -o out/ -d 2 -c half -f 0 1
  llmreg_predict -i in/ -o out/ --num_parts 4 --part_id 0
  llmreg_predict -i in/ -o out/ --all_pairs -m results/Dataset001_Name/llm_morph__default__half
"""


def action(options: argparse.Namespace) -> None:
    from llmreg.devices import choose_device, local_device
    from llmreg.inference.models import find_model, model_in
    from llmreg.inference.predict import Job, predict_folder

    if options.model:
        model = model_in(options.model, options.folds)
    else:
        model = find_model(options.dataset, options.configuration, options.plans, options.folds)
    if (options.num_parts is None) != (options.part_id is None):
        raise UserError("--num_parts and --part_id go together: of how many parts, and which one, from 0.")
    # Of torchrun, unless they are given.
    parts = options.num_parts or int(os.environ.get("WORLD_SIZE", "1"))
    part = int(os.environ.get("RANK", "0")) if options.part_id is None else options.part_id
    if part >= parts:
        raise UserError(f"--part_id {part} is not one of {parts} parts: they are counted from 0 (--num_parts).")
    job = Job(options.all_pairs, options.overwrite, options.go_on, part, parts)
    predict_folder(options.input, options.output, model, choose_device(local_device(options.device)), job)


def main(argv: Sequence[str] | None = None) -> int:
    parser = shell.parser(
        "Register pairs: displacement fields in each fixed image's own grid (ITK, mm, LPS) and warped moving images.",
        EXAMPLES,
    )
    parser.add_argument("-i", "--input", type=Path, required=True, help="folder of images, or a pairs.csv")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("-d", "--dataset", help="dataset id or whole name (default: the only trained one)")
    parser.add_argument("-c", "--configuration", help="full or half")
    parser.add_argument("-p", "--plans", help="name of the plans")
    parser.add_argument("-f", "--folds", nargs="+", help="folds to average (default: all trained)")
    parser.add_argument("-m", "--model", type=Path, help="a model folder, instead of -d, -c and -p")
    parser.add_argument("--all_pairs", action="store_true", help="every fixed with every moving image")
    parser.add_argument("--overwrite", action="store_true", help="replace predictions that the output folder holds")
    parser.add_argument(
        "--continue", dest="go_on", action="store_true", help="leave out pairs that are written already"
    )
    parser.add_argument(
        "--num_parts", type=shell.positive, metavar="N", help="share the pairs among N processes or computers"
    )
    parser.add_argument("--part_id", type=shell.whole, metavar="K", help="the part that this one does, from 0")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda when there is one)")
    return shell.run(action, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
