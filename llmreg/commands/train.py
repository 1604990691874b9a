"""llmreg_train: train a fold."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from llmreg.commands import shell
from llmreg.network.ablations import ABLATIONS

EXAMPLES = """\
  llmreg_train 1 fold0
  llmreg_train 1 fold0 --continue
  llmreg_train 1 all -c full --epochs 200
  llmreg_train 1 fold0 --ablation no-lora
  llmreg_train 1 0 --set loss.smoothness=0.3 network.llm.rotary=1d --as smoother
"""


def action(options: argparse.Namespace) -> None:
    from llmreg.inference.validation import validate_fold
    from llmreg.training.experiment import run_fold

    done = run_fold(
        options.dataset,
        options.fold,
        configuration=options.configuration,
        plans_name=options.plans,
        changes=options.set,
        name=options.name,
        ablation_name=options.ablation,
        epochs=options.epochs,
        go_on=options.go_on,
        device_name=options.device,
        workers=options.workers,
    )
    validate_fold(done.model, done.fold, done.dataset, done.validation_pairs, done.device)


def main(argv: Sequence[str] | None = None) -> int:
    parser = shell.parser("Train a fold of a dataset that llmreg_plan_and_preprocess has prepared.", EXAMPLES)
    parser.add_argument("dataset", help="dataset id or whole name")
    parser.add_argument("fold", help="fold0, fold_0, 0, ... or all")
    parser.add_argument("-c", "--configuration", help="full or half (default: the plans')")
    parser.add_argument("-p", "--plans", default="default", help="name of the plans (default: default)")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change the plans; needs --as"
    )
    parser.add_argument("--as", dest="name", help="name of the changed plans")
    parser.add_argument(
        "--ablation",
        metavar="NAME",
        help="train without a part of the network: " + "; ".join(f"{name}: {what}" for name, what in ABLATIONS.items()),
    )
    parser.add_argument("--epochs", type=shell.positive, help="instead of the plans' number")
    parser.add_argument("--continue", dest="go_on", action="store_true", help="go on where a training stopped")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda when there is one)")
    parser.add_argument(
        "--workers",
        type=int,
        choices=range(9),
        default=1,
        metavar="N",
        help="processes that load and augment (0: none)",
    )
    return shell.run(action, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
