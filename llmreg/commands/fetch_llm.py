"""llmreg_fetch_llm: the few layers of a language model that plans use, into the layer cache."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from llmreg.commands import shell

EXAMPLES = """\
  llmreg_fetch_llm smollm2-135m --layers 15 16
  llmreg_fetch_llm meta-llama/Meta-Llama-3-8B --layers middle      reads 872 MB of 16 GB
  llmreg_fetch_llm /data/Qwen2-7B --layers deep
  llmreg_fetch_llm model.Q4_K_M.gguf --layers 0 1
"""


def action(options: argparse.Namespace) -> None:
    from llmreg import paths
    from llmreg.networks.language_models.fetching import fetch, named_layers

    fetch(named_layers(options.source, options.layers), paths.llm_cache_folder(), measure=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = shell.parser(
        "Put decoder layers of a pretrained language model into the layer cache ($llmreg_home/llm): trained folds then "
        "predict with the cache alone. From the hub nothing else is read; of a model on disk the layers before are run "
        "once, to measure the scale of what enters.",
        EXAMPLES,
    )
    parser.add_argument(
        "source", help="a built-in name (smollm2-135m), a Hugging Face folder, a GGUF file or a hub id (owner/name)"
    )
    shell.add_layers(parser)
    return shell.run(action, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
