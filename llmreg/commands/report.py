"""llmreg_report: one HTML page about a model, predictions or a benchmark."""

import argparse
import sys
from pathlib import Path

from llmreg.commands import shell
from llmreg.errors import UserError

EXAMPLES = """\
  llmreg_report out/
  llmreg_report $llmreg_results/Dataset002_BrainMRCT/llm_morph__default__half --predictions out/
  llmreg_report -d 2
  llmreg_report $llmreg_results/Dataset002_BrainMRCT/benchmark -o benchmark.html --pairs 6
"""


def action(options: argparse.Namespace) -> None:
    """Write the page and say where it is."""
    from llmreg.report.page import write_report

    if (options.path is None) == (options.dataset is None):
        raise UserError("Name one folder, or a dataset with -d, whose benchmark is reported.")
    path = options.path or _find_benchmark(options.dataset)
    page = write_report(path, options.output, options.pairs, options.predictions, options.num_processes)
    sys.stdout.write(f"{page} ({page.stat().st_size / 1e6:.1f} MB): open it in a browser.\n")


def _find_benchmark(dataset: str) -> Path:
    from llmreg import paths
    from llmreg.comparison.benchmark_record import BENCHMARK_FILE, BENCHMARK_FOLDER

    path = paths.find_dataset_folder(dataset, paths.results_folder()) / BENCHMARK_FOLDER
    if not (path / BENCHMARK_FILE).is_file():
        raise UserError(f"{path} holds no benchmark: run llmreg_benchmark -d {dataset}, or name another folder.")
    return path


def build_parser() -> argparse.ArgumentParser:
    parser = shell.create_parser(
        "Write one HTML page, which needs no network, about predictions, a model or a benchmark: numbers, box plots, "
        "training curves, and slices with contours, warped grids and maps of the worst and the best pairs.",
        EXAMPLES,
    )
    parser.add_argument("path", nargs="?", type=Path, help="folder of predictions, of a model or of a benchmark")
    parser.add_argument("-d", "--dataset", help="dataset id or whole name, instead of a folder: its benchmark")
    parser.add_argument("-o", "--output", type=Path, help="the page (default: report.html in the folder)")
    parser.add_argument(
        "--pairs", type=shell.positive, default=10, metavar="N", help="pairs shown in slices (default: 10)"
    )
    parser.add_argument("--predictions", type=Path, help="for a model: predictions whose slices are shown")
    parser.add_argument(
        "--num_processes", type=shell.positive, default=2, help="pairs drawn at the same time (default: 2)"
    )
    return parser


main = shell.create_main(build_parser, action)
