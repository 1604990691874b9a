"""llmreg_install_model: a model that somebody exported, among one's own results."""

import argparse
import shlex
import sys
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from llmreg import paths
from llmreg.commands import shell

if TYPE_CHECKING:
    from llmreg.sharing.exporting import NeededLayers

EXAMPLES = """\
  llmreg_install_model model.zip
  llmreg_install_model model.zip -o models
  llmreg_install_model model.zip --overwrite
"""


def build_parser() -> argparse.ArgumentParser:
    parser = shell.create_parser(
        "Check a zip that llmreg_export_model wrote, whoever sent it, and install the model in it under its own name. "
        "Nothing in it is run, and nothing is written unless all of it is valid.",
        EXAMPLES,
    )
    parser.add_argument("archive", type=Path, metavar="ZIP", help="the file")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        help="install below this folder (default: the results folder, $llmreg_results)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a model of that name, with all that its folder holds"
    )
    return parser


def action(options: argparse.Namespace) -> None:
    """Install the model and say how to predict with it."""
    from llmreg.sharing.installing import has_layers, install_model

    root = options.output or paths.results_folder()
    model, manifest = install_model(options.archive, root, overwrite=options.overwrite)
    llm = manifest.llm
    lines = [
        f"Installed {manifest.name}, folds {', '.join(model.folds)}. Predict with:",
        f"  llmreg_predict -i in/ -o out/ -m {shlex.quote(str(model.folder))}",
    ]
    if llm is not None:
        layers = ", ".join(map(str, llm.layers))
        state = "are here." if has_layers(llm) else f"are not here yet. Get them with:\n  {explain_how_to_get(llm)}"
        lines.append(f"Layers {layers} of the language model {llm.source} (sha256 {llm.sha256[:12]}) {state}")
    sys.stdout.write("\n".join(lines) + "\n")


def explain_how_to_get(llm: "NeededLayers") -> str:
    """Explain how to get the layers of a language model that a model needs, and that are not on this computer."""
    from llmreg.networks.language_models.reading import BUILT_IN

    copy = (
        f"copy the folder whose name ends in _{llm.sha256[:12]} from the layer cache of the computer that exported the "
        f"model into {paths.llm_cache_folder()}"
    )
    if llm.weights == "random":
        return copy
    layers = f"--layers {' '.join(map(str, llm.layers))}"
    if PurePosixPath(llm.source).is_absolute() or PureWindowsPath(llm.source).is_absolute():
        name = PureWindowsPath(llm.source).name
        return f"llmreg_fetch_llm FOLDER {layers}, where FOLDER is your copy of '{name}'; or {copy}"
    _, install, hub_id = BUILT_IN.get(llm.source, ("", "", llm.source))
    if install and llm.revision is None:
        return install
    source = hub_id if llm.revision is None else f"{hub_id.partition('@')[0]}@{llm.revision}"
    return f"llmreg_fetch_llm {shlex.quote(source)} {layers}"


main = shell.create_main(build_parser, action)
