"""llmreg_fetch_llm: the few layers of a language model that plans use, into the layer cache."""

import argparse

from llmreg.commands import shared_options, shell

EXAMPLES = """\
  llmreg_fetch_llm smollm2-135m --layers 15 16
  llmreg_fetch_llm meta-llama/Meta-Llama-3-8B --layers middle      reads 872 MB of 16 GB
  llmreg_fetch_llm /data/Qwen2-7B --layers deep
  llmreg_fetch_llm model.Q4_K_M.gguf --layers 0 1
"""


def action(options: argparse.Namespace) -> None:
    """Fetch the layers into the cache."""
    from llmreg import paths
    from llmreg.networks.language_models.loading import fetch, select_layers

    fetch(select_layers(options.source, options.layers), paths.llm_cache_folder())


def build_parser() -> argparse.ArgumentParser:
    parser = shell.create_parser(
        "Put decoder layers of a pretrained language model into the layer cache ($llmreg_home/llm): trained folds then "
        "predict with the cache alone. Nothing else of the model is read.",
        EXAMPLES,
    )
    parser.add_argument(
        "source", help="a built-in name (smollm2-135m), a Hugging Face folder, a GGUF file or a hub id (owner/name)"
    )
    shared_options.add_layers(parser)
    return parser


main = shell.create_main(build_parser, action)
