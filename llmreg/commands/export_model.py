"""llmreg_export_model: a trained model as one zip file for others."""

import argparse
import logging
import sys
from pathlib import Path

from llmreg.commands import shared_options, shell

log = logging.getLogger(__name__)

EXAMPLES = """\
  llmreg_export_model -o model.zip
  llmreg_export_model -d 2 -c half -f 0 1 -o brain.zip
  llmreg_export_model -m results/Dataset001_Name/llm_morph__default__half -o model.zip --overwrite
"""


def build_parser() -> argparse.ArgumentParser:
    parser = shell.create_parser(
        "Put a trained model into one zip file: plans, fingerprint, reference image, templates and the weights of its "
        "folds, without the language model. llmreg_install_model makes a model of it on another computer.",
        EXAMPLES,
    )
    shared_options.add_model(parser, "export")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="ZIP", help="the file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    return parser


def action(options: argparse.Namespace) -> None:
    """Write the zip and say what it holds."""
    from llmreg.networks.language_models.reading import is_local
    from llmreg.plans.plans import PLANS_FILE, read_plans
    from llmreg.sharing.exporting import export_model

    model = shared_options.choose_model(options)
    manifest = export_model(model, options.output, overwrite=options.overwrite)
    log.warning(
        "The file holds the training image %s (reference.nii.gz) and the names and statistics of the training cases: "
        "give it only to those who may have them.",
        read_plans(model.folder / PLANS_FILE).prealignment.reference_case,
    )
    if manifest.llm is not None and is_local(manifest.llm.source):
        log.warning(
            "The plans, and therefore the file, tell where the language model lies here: %s.", manifest.llm.source
        )
    size = options.output.stat().st_size / 2**20
    sys.stdout.write(
        f"{options.output} ({size:.1f} MiB) holds {manifest.name}, folds {', '.join(model.folds)}.\n"
        f"Whoever gets it runs: llmreg_install_model {options.output.name}\n"
    )


main = shell.create_main(build_parser, action)
