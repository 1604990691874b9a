"""llmreg_find_best_configuration: compare the models trained on a dataset."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from llmreg.commands import shell

EXAMPLES = """\
  llmreg_find_best_configuration 1
  llmreg_find_best_configuration 1 -f 0 1 2
"""
log = logging.getLogger(__name__)


def action(options: argparse.Namespace) -> None:
    from llmreg import paths
    from llmreg.data.splits import fold_name
    from llmreg.evaluation.selection import select, write_selection

    results = paths.find_dataset_folder(options.dataset, paths.results_folder())
    folds = [fold_name(fold) for fold in options.folds] if options.folds else None
    found = select(results, folds)
    log.info("%d validation pairs of fold(s) %s:\n\n%s\n", found.num_pairs, ", ".join(found.folds), found.table())
    log.info("Written to %s. To predict with the best one:", write_selection(results, found))
    log.info("  %s", found.command(options.dataset))


def main(argv: Sequence[str] | None = None) -> int:
    parser = shell.parser(
        "Compare the models trained on a dataset by Dice, HD95 and folding on the validation pairs they share.",
        EXAMPLES,
    )
    parser.add_argument("dataset", help="dataset id or whole name")
    parser.add_argument("-f", "--folds", nargs="+", help="folds to compare (default: those every model was trained on)")
    return shell.run(action, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
