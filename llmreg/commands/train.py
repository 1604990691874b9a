"""llmreg_train: train a fold."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from llmreg.commands import shell
from llmreg.errors import UserError
from llmreg.networks.network_registry import NETWORKS, all_ablations

EXAMPLES = """\
  llmreg_train 1 fold0
  llmreg_train 1 fold0 --continue
  llmreg_train 1 all -c full --epochs 200
  llmreg_train 1 fold0 --minutes 60
  llmreg_train 1 fold0 --ablation vit
  llmreg_train 1 fold0 --network voxelmorph
  llmreg_train 1 fold0 --num_gpus 4
  llmreg_train 1 fold0 --pretrained results/Dataset002_Other/llm_morph__default__half/fold_0
  llmreg_train 1 0 --set loss.smoothness=0.3 training.learning_rate=2e-4 --as smoother
"""


def action(options: argparse.Namespace) -> None:
    """Train the fold that the options name, in several processes where they ask for several GPUs."""
    from llmreg.api import train
    from llmreg.training.experiment import PlansChoice
    from llmreg.training.options import TrainingOptions

    if options.num_gpus is not None and "WORLD_SIZE" not in os.environ:
        start_processes(options.num_gpus, options.device, options.words)
    training_options = TrainingOptions(
        epochs=options.epochs,
        minutes=options.minutes,
        resume=options.resume,
        workers=options.workers,
        compile=options.compile,
        loggers=tuple(options.log),
        pretrained=options.pretrained,
    )
    train(
        options.dataset,
        options.fold,
        training_options,
        PlansChoice(options.plans, options.set, options.name, options.ablation, options.network),
        configuration=options.configuration,
        device=options.device,
        validate=options.validate,
    )


def start_processes(count: int, device: str | None, words: Sequence[str]) -> NoReturn:
    """Become torchrun with that many processes of this command, a GPU for each.

    Raises:
        UserError: there are fewer GPUs.
    """
    import torch

    from llmreg.machine import available_cores

    if device != "cpu" and torch.cuda.device_count() < count:
        raise UserError(
            f"There are {torch.cuda.device_count()} GPUs here, not {count}: give their number with --num_gpus, or add "
            "--device cpu."
        )
    # torchrun would give each process one thread, and 30 seconds to keep its work when it is told to stop.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // count)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    os.execv(sys.executable, [sys.executable, *launcher, "-m", "llmreg.commands", "train", *words])


def build_parser() -> argparse.ArgumentParser:
    parser = shell.create_parser("Train a fold of a dataset that llmreg_plan_and_preprocess has prepared.", EXAMPLES)
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
        help="train without a part of the network: "
        + "; ".join(shell.literal(f"{name}: {summary}") for name, summary in all_ablations().items()),
    )
    parser.add_argument(
        "--network",
        choices=NETWORKS.names,
        help="train another network than the plans', with its default settings: "
        + "; ".join(shell.literal(f"{name}: {plugin.summary}") for name, plugin in NETWORKS.parts.items()),
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=shell.positive, help="instead of the plans' number")
    length.add_argument(
        "--minutes", type=shell.positive_number, metavar="M", help="as many epochs as fit into M minutes of steps"
    )
    parser.add_argument(
        "--continue", dest="resume", action="store_true", help="resume the training from its latest checkpoint"
    )
    parser.add_argument(
        "--no_validation",
        dest="validate",
        action="store_false",
        help="do not predict and score the fold's validation pairs at the end; --continue without it does",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda when there is one)")
    parser.add_argument("--pretrained", type=Path, metavar="MODEL", help="start from a model folder or checkpoint")
    parser.add_argument(
        "--workers", type=shell.whole, default=1, metavar="N", help="processes that load and augment (0: none)"
    )
    parser.add_argument("--num_gpus", type=shell.positive, metavar="N", help="train on several GPUs of this computer")
    shell.accept_old_spelling(parser, "-num_gpus", dest="num_gpus", type=shell.positive)
    parser.add_argument("--compile", action="store_true", help="compile the network with torch.compile, where it works")
    parser.add_argument(
        "--log", nargs="+", default=[], choices=("tensorboard", "wandb"), help="show the progress in these programs too"
    )
    return parser


main = shell.create_main(build_parser, action)
