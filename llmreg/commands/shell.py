"""What every command shares: one clear sentence and exit code 2 for a user's mistake, and a readable log."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmreg.commands.hints import hint
from llmreg.errors import Interrupted, UserError

if TYPE_CHECKING:
    from llmreg.inference.models import Model
    from llmreg.preprocessing.planning import PlannerOverrides

INTERRUPTED = 130
# A disk, or what a user may have of it; Windows knows no quota.
FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def parser(description: str, examples: str) -> argparse.ArgumentParser:
    """An argument parser whose ``--help`` ends with examples."""
    made = argparse.ArgumentParser(
        description=description,
        epilog="examples:\n" + examples.rstrip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--verbose", action="store_true", help="log more than usual")
    return made


def dataset_parser(description: str, examples: str) -> argparse.ArgumentParser:
    """A parser for the commands that prepare datasets: ``-d`` and ``--num_processes``."""
    from llmreg.workers import default_processes

    made = parser(description, examples)
    made.add_argument("-d", "--datasets", nargs="+", required=True, metavar="D", help="dataset ids or whole names")
    made.add_argument(
        "-np",
        "--num_processes",
        type=positive,
        metavar="N",
        default=default_processes(),
        help="cases at the same time (default: %(default)s, one a core as far as the memory goes)",
    )
    return made


def add_planning(made: argparse.ArgumentParser) -> None:
    """The flags of the commands that plan."""
    made.add_argument("--overwrite", action="store_true", help="replace plans that were edited")
    made.add_argument(
        "-c",
        "--configuration",
        choices=("full", "half"),
        help="what llmreg_train uses without -c (default: the planner's choice)",
    )
    made.add_argument(
        "--spacing",
        type=positive_number,
        nargs=3,
        metavar="MM",
        help="of the common grid, along left, posterior and superior (default: from the images')",
    )
    made.add_argument(
        "--memory-gb",
        type=positive_number,
        metavar="GB",
        help="memory to plan the training for (default: most of what the GPU, or without one the computer, has)",
    )
    add_llm(made)


def wishes(options: argparse.Namespace) -> PlannerOverrides:
    """What the flags of :func:`add_planning` say; a language model's layers are fetched."""
    from llmreg.preprocessing.dataset_steps import chosen_network
    from llmreg.preprocessing.planning import PlannerOverrides

    spacing = None if options.spacing is None else tuple(options.spacing)
    return PlannerOverrides(chosen_network(options.llm, options.layers), options.configuration, spacing)


def add_llm(made: argparse.ArgumentParser) -> None:
    """The flags of the commands that plan: which language model."""
    made.add_argument(
        "--llm",
        metavar="SOURCE",
        help="language model: a built-in name, a Hugging Face folder, a GGUF file or a hub id",
    )
    add_layers(made)


def add_layers(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--layers",
        nargs="+",
        metavar="N",
        help="its layers, counted from 0, one for each block; or middle, deep (default: 15 16 of smollm2-135m, middle "
        "of others)",
    )


def add_model(made: argparse._ActionsContainer, purpose: str) -> None:
    """The flags that choose a trained model and its folds."""
    from llmreg.networks.config import NETWORKS

    made.add_argument("-d", "--dataset", help="dataset id or whole name (default: the only trained one)")
    made.add_argument("-c", "--configuration", help="full or half")
    made.add_argument("-p", "--plans", help="name of the plans")
    made.add_argument("--network", choices=NETWORKS, help="of which network, where several were trained")
    made.add_argument("-f", "--folds", nargs="+", help=f"folds to {purpose} (default: all trained)")
    made.add_argument("-m", "--model", type=Path, help="a model folder, instead of -d, -c, -p and --network")


def chosen_model(options: argparse.Namespace) -> Model:
    """The model that the flags of :func:`add_model` name."""
    from llmreg.inference.models import find_model, model_in

    if options.model and (options.dataset or options.configuration or options.plans or options.network):
        raise UserError("-m names the model by itself: leave out -d, -c, -p and --network.")
    if options.model:
        return model_in(options.model, options.folds)
    return find_model(options.dataset, options.configuration, options.plans, options.folds, options.network)


def positive(text: str) -> int:
    """An argument type: a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1")
    return int(text)


def whole(text: str) -> int:
    """An argument type: a whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0")
    return int(text)


def positive_number(text: str) -> float:
    """An argument type: a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return number


def run(
    action: Callable[[argparse.Namespace], None], arguments: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> int:
    """Parse ``argv``, call ``action`` with the result and turn a :class:`UserError` into a sentence.

    Returns the exit code: 0, 2 for a user's mistake, 130 when interrupted, 143 when terminated after its work was kept.
    """
    options = arguments.parse_args(argv)
    level = logging.DEBUG if options.verbose else logging.INFO
    # Of the processes that torchrun starts, the first one tells what they do.
    first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=level if first else logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    for chatty in ("matplotlib", "PIL", "fontTools", "filelock", "urllib3", "httpx", "httpcore", "numexpr"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        action(options)
    except UserError as error:
        sys.stderr.write(" ".join(["error:", str(error), hint(error)]).rstrip() + "\n")
        return 2
    except MemoryError as error:
        return _out_of(f"memory ({error})" if str(error) else "memory")
    except OSError as error:
        if error.errno not in FULL:
            raise
        return _out_of(f"space on the disk of {error.filename}" if error.filename else "space on the disk")
    except Interrupted as interruption:
        sys.stderr.write(f"{interruption}\n")
        return interruption.exit_code
    except RuntimeError as error:
        # torch's own class for CUDA, without importing torch for every --help.
        if type(error).__name__ != "OutOfMemoryError":
            raise
        return _out_of("memory")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    return 0


def _out_of(what: str) -> int:
    sys.stderr.write(
        f"error: The computer ran out of {what}: free some, or do with less (in training: -c half, or a narrower "
        "network with --set network.width=8 --as narrow; in prediction: fewer outputs, or --device cpu).\n"
    )
    return 2
