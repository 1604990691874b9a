"""Options that several commands have, and what they mean to the library."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from llmreg.commands import shell
from llmreg.errors import UserError

if TYPE_CHECKING:
    from llmreg.inference.models import Model
    from llmreg.preprocessing.planning.planner import PlannerOverrides


def create_dataset_parser(description: str, examples: str) -> argparse.ArgumentParser:
    """Create a parser for the commands that prepare datasets: which ones, and with how many processes."""
    # This is imported here, since most commands need no other processes, whose modules take a while to import.
    from llmreg.workers import default_process_count

    parser = shell.create_parser(description, examples)
    parser.add_argument("-d", "--datasets", nargs="+", required=True, metavar="D", help="dataset ids or whole names")
    parser.add_argument(
        "--num_processes",
        type=shell.positive,
        metavar="N",
        default=default_process_count(),
        help="cases at the same time (default: %(default)s, one a core as far as the memory goes)",
    )
    shell.accept_old_spelling(parser, "-np", dest="num_processes", type=shell.positive)
    return parser


def add_planning(parser: argparse.ArgumentParser) -> None:
    """Add the options of the commands that plan."""
    parser.add_argument("--overwrite", action="store_true", help="replace plans that were edited")
    parser.add_argument(
        "-c",
        "--configuration",
        choices=("full", "half"),
        help="what llmreg_train uses without -c (default: the planner's choice)",
    )
    parser.add_argument(
        "--spacing",
        type=shell.positive_number,
        nargs=3,
        metavar="MM",
        help="of the common grid, along left, posterior and superior (default: from the images')",
    )
    parser.add_argument(
        "--memory_gb",
        type=shell.positive_number,
        metavar="GB",
        help="memory to plan the training for (default: most of what the GPU, or without one the computer, has)",
    )
    parser.add_argument(
        "--llm",
        metavar="SOURCE",
        help="language model: a built-in name, a Hugging Face folder, a GGUF file or a hub id",
    )
    add_layers(parser)


def read_overrides(options: argparse.Namespace) -> "PlannerOverrides":
    """Read the options of :func:`add_planning`; a language model's layers are fetched."""
    from llmreg.preprocessing.planning.planner import PlannerOverrides
    from llmreg.preprocessing.preparation import fetch_network

    spacing = None if options.spacing is None else tuple(options.spacing)
    return PlannerOverrides(fetch_network(options.llm, options.layers), options.configuration, spacing)


def field_format(text: str) -> str:
    """An argument type: the name of a registered format of displacement fields."""
    # This is imported here, because the formats take half a second to import.
    from llmreg.images.formats import FIELD_FORMATS

    if text not in FIELD_FORMATS.names:
        raise argparse.ArgumentTypeError(f"'{text}' is none of the formats {', '.join(FIELD_FORMATS.names)}")
    return text


def add_layers(parser: argparse.ArgumentParser) -> None:
    """Add the option that chooses layers of a language model."""
    parser.add_argument(
        "--layers",
        nargs="+",
        metavar="N",
        help="its layers, counted from 0, one for each block; or middle, deep (default: 15 16 of smollm2-135m, middle "
        "of others)",
    )


def add_model(parser: argparse._ActionsContainer, purpose: str) -> None:
    """Add the options that choose a trained model and its folds."""
    from llmreg.networks.network_registry import NETWORKS

    parser.add_argument("-d", "--dataset", help="dataset id or whole name (default: the only trained one)")
    parser.add_argument("-c", "--configuration", help="full or half")
    parser.add_argument("-p", "--plans", help="name of the plans")
    parser.add_argument(
        "--network", choices=NETWORKS.names, help="the network of the model, where several were trained"
    )
    parser.add_argument("-f", "--folds", nargs="+", help=f"folds to {purpose} (default: all trained)")
    parser.add_argument(
        "-m", "--model", type=Path, metavar="FOLDER", help="a model folder, instead of -d, -c, -p and --network"
    )


def choose_model(options: argparse.Namespace) -> "Model":
    """Find the model that the options of :func:`add_model` name."""
    from llmreg.inference.models import find_model, load_model

    if options.model is None:
        return find_model(options.dataset, options.configuration, options.plans, options.folds, options.network)
    if any((options.dataset, options.configuration, options.plans, options.network)):
        raise UserError("-m names the model by itself: leave out -d, -c, -p and --network.")
    return load_model(options.model, options.folds)
