"""``llmreg_install_model``: a model that somebody exported, among one's own results."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from llmreg.commands import shell

_EXAMPLES = """
  llmreg_install_model model.zip
  llmreg_install_model model.zip -o models
  llmreg_install_model model.zip --overwrite
"""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = shell.parser(
        "Check a zip that llmreg_export_model wrote, from whomever it comes, and install the model in it under its own "
        "name. Nothing in it is run, and nothing is written when anything in it is not as it must be.",
        _EXAMPLES,
    )
    arguments.add_argument("archive", type=Path, metavar="ZIP", help="the file")
    arguments.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        help="install below this folder (default: the results folder, $llmreg_results)",
    )
    arguments.add_argument(
        "--overwrite", action="store_true", help="replace a model of that name, with all that its folder holds"
    )
    return shell.run(_install, arguments, argv)


def _install(options: argparse.Namespace) -> None:
    from llmreg import paths
    from llmreg.sharing.manifest import missing_layers
    from llmreg.sharing.model_zip import install_model

    installed = install_model(options.archive, options.output or paths.results_folder(), options.overwrite)
    folder, llm = installed.model.folder, installed.manifest.llm
    lines = [f"Installed {installed.manifest.name}, folds {', '.join(installed.model.folds)}. Predict with:"]
    lines += [f"  llmreg_predict -i in/ -o out/ -m {shlex.quote(str(folder))}"]
    if llm is not None:
        named = (
            f"Layers {', '.join(map(str, llm.layers))} of the language model {llm.source} (sha256 {llm.sha256[:12]})"
        )
        remedy = missing_layers(llm)
        lines += [f"{named} are here." if remedy is None else f"{named} are not here yet. Get them with:\n  {remedy}"]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
