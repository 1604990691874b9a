"""Dataset converters: what one is, and the registry of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmreg.registry import Registry
from llmreg.settings import Settings


@dataclass(frozen=True)
class Converter:
    """A converter of one public download to a raw dataset.

    Attributes:
        summary: a line for the command line's help and the documentation.
        options: the class of its options. Each field has a default and a description, and is a string, a path, a number
            or one of several strings (``Literal``); ``llmreg_convert_dataset`` offers it as an option of its name.
        default_id: the id of the dataset where none is given, for the help.
        convert: takes the folder of the unpacked download, the options and the dataset's id (None: the default one),
            writes the dataset below ``llmreg_raw`` and returns its folder.
    """

    summary: str
    options: type[Settings]
    default_id: str
    convert: Callable[[Path, Any, int | None], Path]


CONVERTERS: Registry[Converter] = Registry(
    "dataset converter",
    "llmreg.converters",
    ("llmreg.data.converters.learn2reg_abdomen_mrct", "llmreg.data.converters.sr_reg"),
)
