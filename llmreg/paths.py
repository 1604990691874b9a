"""The folders of datasets, models, folds and language models, and their names."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from llmreg.errors import Ambiguous, MissingFolder, UnknownName

# What a network, plans or a configuration may be called, so that every file system and shell takes the name.
WORD = r"[A-Za-z0-9]+(?:[_.-][A-Za-z0-9]+)*"
_PORTABLE = re.compile(rf"Dataset[0-9]{{3}}_[^/\\:*?\"<>|]+(?<![. ])/{WORD}__{WORD}__{WORD}")
# File systems allow 255 bytes in the name of a folder.
_MOST_BYTES = 240
_FOLD = "fold_"
# The variable of the folder above all others.
_COMMON = "llmreg_home"


def _find_folder(variable: str) -> Path | None:
    """The folder of a variable, such as ``$llmreg_raw``, else ``$llmreg_home/raw``; None when neither is set."""
    for name, below in ((variable, ""), (_COMMON, variable.removeprefix("llmreg_"))):
        if value := os.environ.get(name):
            return Path(value).expanduser() / below
    return None


def _get_folder(variable: str) -> Path:
    folder = _find_folder(variable)
    if folder is None:
        raise MissingFolder(variable, _COMMON)
    return folder


def raw_folder() -> Path:
    """``$llmreg_raw``, else ``$llmreg_home/raw``. Raises MissingFolder when neither is set."""
    return _get_folder("llmreg_raw")


def preprocessed_folder() -> Path:
    """``$llmreg_preprocessed``, else ``$llmreg_home/preprocessed``. Raises MissingFolder when neither is set."""
    return _get_folder("llmreg_preprocessed")


def results_folder() -> Path:
    """``$llmreg_results``, else ``$llmreg_home/results``. Raises MissingFolder when neither is set."""
    return _get_folder("llmreg_results")


def llm_cache_folder() -> Path:
    """``$llmreg_llm``, else ``$llmreg_home/llm``, else a folder in the user's cache: prediction needs no set-up."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return _find_folder("llmreg_llm") or cache / "llmreg" / "llm"


def find_dataset_folder(name_or_id: str | int, root: Path) -> Path:
    """The folder ``Dataset<id>_<Name>`` under ``root``, found by id (``1``, ``"001"``) or by its whole name.

    Raises:
        UnknownName: there is none.
        Ambiguous: several have that id.
    """
    folders = sorted(path for path in root.glob("Dataset[0-9][0-9][0-9]_*") if path.is_dir())
    text = str(name_or_id)
    matches = [
        path for path in folders if text == path.name or (text.isdecimal() and int(text) == int(path.name[7:10]))
    ]
    if not matches:
        known = [path.name for path in folders]
        raise UnknownName("dataset", text, known, f"Folders in {root} are named Dataset001_Name.")
    if len(matches) > 1:
        raise Ambiguous(f"folder of dataset {text}", [str(path) for path in matches])
    return matches[0]


def preprocessed_dataset(name_or_id: str | int) -> Path:
    """The folder of a dataset's preprocessed cases and plans, named like its raw folder (see find_dataset_folder)."""
    return preprocessed_folder() / find_dataset_folder(name_or_id, raw_folder()).name


@dataclass(frozen=True)
class ModelName:
    """A model's name, which is also its folder below the results folder.

    Attributes:
        dataset: the dataset's whole name, ``Dataset001_Name``.
        network: name of the registered network.
        plans: name of the plans.
        configuration: ``full``, ``half``, or one that the plans add.
    """

    dataset: str
    network: str
    plans: str
    configuration: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the name from its text. Raises ValueError when the text is not of that form."""
        dataset, _, folder = text.rpartition("/")
        words = folder.split("__")
        if len(words) != 3 or not all(words):
            raise ValueError(f"'{text}' is not <dataset>/<network>__<plans>__<configuration>")
        return cls(dataset, *words)

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Read the name from the path of a model folder. Raises ValueError when the folder is not named like one."""
        return cls.parse(f"{folder.parent.name}/{folder.name}")

    def __str__(self) -> str:
        return f"{self.dataset}/{self.network}__{self.plans}__{self.configuration}"

    def below(self, root: Path) -> Path:
        """The model's folder below a results folder."""
        return root / str(self)

    def check_portable(self) -> None:
        """Check that every computer can have a folder of this name. Raises ValueError when some cannot."""
        text = str(self)
        if not text.isprintable() or len(text.encode()) > _MOST_BYTES or not _PORTABLE.fullmatch(text):
            raise ValueError("a model is called Dataset001_Name/<network>__<plans>__<configuration>")


def is_word(name: str) -> bool:
    """Whether plans, a network or a configuration may be called ``name``."""
    return re.fullmatch(WORD, name) is not None


def find_model_folders(root: Path) -> list[Path]:
    """All folders below ``root`` that are named like a model's, sorted; ``root`` is a dataset's folder of results."""
    return sorted(folder for folder in root.glob("*__*__*") if folder.name.count("__") == 2)


def fold_folder(model: Path, fold: int | str) -> Path:
    """The folder of a fold, ``fold_0`` or ``fold_all``, in a model's folder."""
    return model / f"{_FOLD}{fold}"


def find_fold_folders(model: Path) -> dict[str, Path]:
    """The folders of a model's folds by the fold's name, sorted."""
    return {fold_name(folder.name): folder for folder in sorted(model.glob(f"{_FOLD}*")) if folder.is_dir()}


def fold_name(text: str) -> str:
    """The bare name, ``0`` or ``all``, of ``0``, ``fold0``, ``fold_0`` or ``fold_all``, whether or not there is one."""
    return text.removeprefix("fold").removeprefix("_")
