"""The folders of datasets, results and language models, read from the environment when they are used."""

from __future__ import annotations

import os
import re
from pathlib import Path

from llmreg.errors import Ambiguous, UnknownDataset, UserError

_FOLDERS = {"llmreg_raw": "raw", "llmreg_preprocessed": "preprocessed", "llmreg_results": "results"}


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if value:
        return Path(value).expanduser()
    home = os.environ.get("llmreg_home")  # noqa: SIM112 (as nnU-Net spells its own)
    if home:
        return Path(home).expanduser() / _FOLDERS[variable]
    raise UserError(
        f"The environment variable {variable} is not set: type 'export {variable}=/path/to/a/folder', "
        "or set llmreg_home for all three folders at once."
    )


def raw_folder() -> Path:
    """``$llmreg_raw``, else ``$llmreg_home/raw``. Raises UserError when neither variable is set."""
    return _folder("llmreg_raw")


def preprocessed_folder() -> Path:
    """``$llmreg_preprocessed``, else ``$llmreg_home/preprocessed``. Raises UserError when neither variable is set."""
    return _folder("llmreg_preprocessed")


def results_folder() -> Path:
    """``$llmreg_results``, else ``$llmreg_home/results``. Raises UserError when neither variable is set."""
    return _folder("llmreg_results")


def llm_cache_folder() -> Path:
    """``$llmreg_llm``, else ``$llmreg_home/llm``, else a folder in the user's cache: prediction needs no set-up."""
    for variable, subfolder in (("llmreg_llm", ""), ("llmreg_home", "llm")):
        if value := os.environ.get(variable):
            return Path(value).expanduser() / subfolder
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "llmreg" / "llm"


def find_dataset_folder(name_or_id: str | int, root: Path) -> Path:
    """The folder ``Dataset<id>_<Name>`` under ``root``, found by id (``1``, ``"001"``) or by its whole name.

    Raises:
        UnknownDataset: there is none.
        Ambiguous: several have that id.
    """
    folders = sorted(path for path in root.glob("Dataset[0-9][0-9][0-9]_*") if path.is_dir())
    text = str(name_or_id)
    is_id = re.fullmatch(r"\d+", text)
    matches = [path for path in folders if (int(path.name[7:10]) == int(text) if is_id else path.name == text)]
    if not matches:
        raise UnknownDataset(text, [path.name for path in folders], root)
    if len(matches) > 1:
        raise Ambiguous(f"folder of dataset {text}", [str(path) for path in matches])
    return matches[0]


def preprocessed_dataset(name_or_id: str | int) -> Path:
    """The folder of a dataset's preprocessed cases and plans, named like its raw folder (see find_dataset_folder)."""
    return preprocessed_folder() / find_dataset_folder(name_or_id, raw_folder()).name
