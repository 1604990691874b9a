"""The three folders, looked up in the environment when they are used, never at import."""

from __future__ import annotations

import os
import re
from pathlib import Path

from llmreg.errors import UserError

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
    return _folder("llmreg_raw")


def preprocessed_folder() -> Path:
    return _folder("llmreg_preprocessed")


def results_folder() -> Path:
    return _folder("llmreg_results")


def llm_cache_folder() -> Path:
    """``$llmreg_llm``, else ``$llmreg_home/llm``, else a folder in the user's cache: prediction needs no set-up."""
    for variable, below in (("llmreg_llm", ""), ("llmreg_home", "llm")):
        if value := os.environ.get(variable):
            return Path(value).expanduser() / below
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "llmreg" / "llm"


def find_dataset_folder(name_or_id: str | int, root: Path) -> Path:
    """The folder ``Dataset<id>_<Name>`` under ``root``, found by id (``1``, ``"001"``) or by its whole name.

    Raises:
        UserError: if there is none (the message lists those that exist) or several with that id.
    """
    known = sorted(p for p in root.glob("Dataset[0-9][0-9][0-9]_*") if p.is_dir())
    text = str(name_or_id)
    if re.fullmatch(r"\d+", text):
        found = [p for p in known if int(p.name[7:10]) == int(text)]
    else:
        found = [p for p in known if p.name == text]
    if len(found) == 1:
        return found[0]
    if len(found) > 1:
        names = ", ".join(p.name for p in found)
        raise UserError(f"Two folders in {root} have the dataset id {text} ({names}): rename one of them.")
    names = ", ".join(p.name for p in known) or "none"
    raise UserError(f"There is no dataset {text} in {root} (found: {names}): folders are named Dataset001_Name.")
