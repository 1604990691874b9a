"""llmreg_find_best_configuration: compare the models trained on a dataset."""

import argparse
import logging
from typing import TYPE_CHECKING

from llmreg import paths
from llmreg.commands import shell

if TYPE_CHECKING:
    from llmreg.evaluation.selection import Selection

EXAMPLES = """\
  llmreg_find_best_configuration 1
  llmreg_find_best_configuration 1 -f 0 1 2
"""
log = logging.getLogger(__name__)


def action(options: argparse.Namespace) -> None:
    """Compare the models, write the choice and say how to predict with the best one."""
    from llmreg.evaluation.selection import select_best, write_selection

    results = paths.find_dataset_folder(options.dataset, paths.results_folder())
    folds = [paths.fold_name(fold) for fold in options.folds] if options.folds else None
    selection = select_best(results, folds)
    log.info(
        "%d validation pairs of fold(s) %s:\n\n%s\n",
        selection.num_pairs,
        ", ".join(selection.folds),
        selection.table(),
    )
    path = write_selection(results, selection, predict_command(selection, results.name))
    log.info("Written to %s. To predict with the best one:\n  %s", path, predict_command(selection, options.dataset))


def predict_command(selection: "Selection", dataset: str) -> str:
    """What to type to predict with the best model; ``dataset`` is an id or whole name."""
    best = selection.best
    network = f" --network {best.network}" if selection.has_several_networks else ""
    return f"llmreg_predict -i in/ -o out/ -d {dataset} -p {best.plans} -c {best.configuration}{network}"


def build_parser() -> argparse.ArgumentParser:
    parser = shell.create_parser(
        "Compare the models trained on a dataset by Dice, HD95 and folding on the validation pairs they share.",
        EXAMPLES,
    )
    parser.add_argument("dataset", help="dataset id or whole name")
    parser.add_argument("-f", "--folds", nargs="+", help="folds to compare (default: those every model was trained on)")
    return parser


main = shell.create_main(build_parser, action)
