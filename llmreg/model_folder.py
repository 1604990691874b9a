"""Names of model folders, ``<dataset>/<network>__<plans>__<configuration>``, and of the folders of their folds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# What a network, plans or a configuration may be called, so that every file system and shell takes the name.
WORD = r"[A-Za-z0-9]+(?:[_.-][A-Za-z0-9]+)*"
_PORTABLE = re.compile(rf"Dataset[0-9]{{3}}_[^/\\:*?\"<>|]+(?<![. ])/{WORD}__{WORD}__{WORD}")
# File systems allow 255 bytes in the name of a folder.
_MOST_BYTES = 240
_FOLD = "fold_"


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
    def parse(cls, text: str) -> ModelName:
        """Read the name from its text. Raises ValueError when the text is not of that form."""
        dataset, _, folder = text.rpartition("/")
        words = folder.split("__")
        if len(words) != 3 or not all(words):
            raise ValueError(f"'{text}' is not <dataset>/<network>__<plans>__<configuration>")
        return cls(dataset, *words)

    @classmethod
    def of(cls, folder: Path) -> ModelName:
        """Read the name from the path of a model folder. Raises ValueError when the folder is not named like one."""
        return cls.parse(f"{folder.parent.name}/{folder.name}")

    def __str__(self) -> str:
        return f"{self.dataset}/{self.folder_name}"

    @property
    def folder_name(self) -> str:
        """Name of the model's folder inside its dataset's folder."""
        return f"{self.network}__{self.plans}__{self.configuration}"

    def below(self, root: Path) -> Path:
        """The model's folder below a results folder."""
        return root / self.dataset / self.folder_name

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
