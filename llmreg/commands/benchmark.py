"""llmreg_benchmark: the paper's tables on a dataset, with every method."""

import argparse
import sys
from pathlib import Path

from llmreg import paths
from llmreg.commands import shell
from llmreg.networks.network_registry import NETWORKS, all_ablations

EXAMPLES = """\
  llmreg_benchmark -d 2
  llmreg_benchmark -d 2 --methods table1 table2 --folds 0 1 --minutes 15
  llmreg_benchmark -d 2 --methods initial ants convexadam llm_morph
  llmreg_benchmark -d 1 --methods table3 figure4 --llms qwen3-0.6b /models/Llama-3-8B --minutes 60

methods:
  table1      the programs ants, greedy, elastix and convexadam; the networks {networks}
  table2      the ablations {ablations}
  table3      language models (--llms), where the plans' network has one
  figure4     pairs of the language model's layers
  or any of these names, initial, llm=SOURCE; with +refine, the fields of a learned method are refined
  (llmreg_predict --refine 50)

What is trained, predicted or scored already is kept: run the command again to resume. A table has the methods that are
named together; the report (llmreg_report -d 2) has all.
"""


def action(options: argparse.Namespace) -> None:
    """Compare the methods and show their tables."""
    from llmreg.comparison.benchmark_record import BENCHMARK_FOLDER
    from llmreg.comparison.benchmark_settings import BenchmarkSettings, load_plans
    from llmreg.comparison.compare_methods import compare_methods
    from llmreg.comparison.methods import select_methods
    from llmreg.comparison.tables import as_markdown

    settings = BenchmarkSettings(
        dataset=options.dataset,
        folds=tuple(sorted({paths.fold_name(fold) for fold in options.folds})),
        plans=options.plans,
        configuration=options.configuration,
        minutes=options.minutes,
        peer_seconds=60 * options.classical_minutes,
        device=options.device,
        workers=options.workers,
    )
    tables = select_methods(options.methods, load_plans(settings).network, options.llms)
    name = paths.preprocessed_dataset(options.dataset).name
    output = options.output or paths.results_folder() / name / BENCHMARK_FOLDER
    for table in compare_methods(settings, tables, output):
        sys.stdout.write(f"\n{as_markdown(table)}")
    sys.stdout.write(f"\nTables (.csv, .md, .tex), box plots and all predictions are in {output}\n")


def build_parser() -> argparse.ArgumentParser:
    networks = [name for network, plugin in NETWORKS.parts.items() for name in (network, *plugin.variants)]
    parser = shell.create_parser(
        "Compare methods on the validation pairs: train or reuse, predict, score, and write the paper's tables.",
        EXAMPLES.format(networks=" ".join(networks), ablations=" ".join(all_ablations())),
    )
    parser.add_argument("-d", "--dataset", required=True, help="dataset id or whole name")
    parser.add_argument(
        "--methods", nargs="+", default=["table1"], metavar="METHOD", help="tables or single methods (default: table1)"
    )
    parser.add_argument(
        "--folds",
        nargs="+",
        default=["0"],
        metavar="K",
        help="whose validation pairs count; test: the dataset's test pairs, by a training on all else (default: 0)",
    )
    parser.add_argument("-p", "--plans", default="default", help="name of the plans (default: default)")
    parser.add_argument("-c", "--configuration", help="full or half (default: the plans')")
    parser.add_argument(
        "--minutes",
        type=shell.positive_number,
        metavar="M",
        help="of training for each learned method and fold (default: the plans' number of epochs)",
    )
    parser.add_argument(
        "--classical_minutes",
        type=shell.positive_number,
        default=15.0,
        metavar="M",
        help="how long a classical method may take for a pair (default: 15)",
    )
    shell.accept_old_spelling(parser, "--peer_minutes", dest="classical_minutes", type=shell.positive_number)
    parser.add_argument("--llms", nargs="+", default=[], metavar="SOURCE", help="language models of table3")
    parser.add_argument("-o", "--output", type=Path, help="default: benchmark/ in the dataset's folder of results")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda when there is one)")
    parser.add_argument(
        "--workers", type=shell.whole, default=1, metavar="N", help="processes that load and augment (0: none)"
    )
    return parser


main = shell.create_main(build_parser, action)
