"""The registry of file formats of displacement fields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmreg.registry import Registry

if TYPE_CHECKING:
    from llmreg.geometry.field import DisplacementField
    from llmreg.geometry.grid import Grid


@dataclass(frozen=True)
class FieldFormat:
    """A file format of displacement fields.

    Attributes:
        endings: the endings of its files' names, the preferred one first.
        read: from a path, the fixed grid and the moving grid (which only formats without geometry look at).
        write: a field to a path, with the moving grid.
    """

    endings: tuple[str, ...]
    read: Callable[[Path, Grid | None, Grid | None], DisplacementField]
    write: Callable[[DisplacementField, Path, Grid | None], None]

    @property
    def ending(self) -> str:
        """The ending of files whose names are not chosen by the user."""
        return self.endings[0]


FIELD_FORMATS: Registry[FieldFormat] = Registry(
    "field format", "llmreg.field_formats", ["llmreg.images.vector_fields", "llmreg.images.array_fields"]
)


def field_endings() -> tuple[str, ...]:
    """The endings of files of fields in any format."""
    formats = FIELD_FORMATS.parts.values()
    return tuple(dict.fromkeys(ending for field_format in formats for ending in field_format.endings))
