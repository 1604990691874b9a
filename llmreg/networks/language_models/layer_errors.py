"""The errors of a language model's layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmreg.errors import UnreadableFile, UserError


class MissingLayers(UserError):
    """The layers of a language model are neither in the layer cache nor at their source.

    Attributes:
        source: the language model.
        layers: zero-based indices.
        sha256: digest that they must have.
        folder: the layer cache.
        reason: why they cannot be read from their source.
    """

    def __init__(self, source: str, layers: Sequence[int], sha256: str, folder: Path, reason: str) -> None:
        super().__init__(
            f"Layers {', '.join(map(str, layers))} of the language model '{source}' (sha256 {sha256[:12]}) are not in "
            f"the layer cache {folder}, and not at their source ({reason}): copy their folder into the cache from the "
            "computer that trained with them, or fetch them again."
        )
        self.source, self.layers, self.sha256, self.folder, self.reason = source, tuple(layers), sha256, folder, reason


class OtherLayers(UserError):
    """The layers of a language model are others than the settings' digest says.

    Attributes:
        source: the language model.
        layers: zero-based indices.
        actual: digest of the layers at their source.
        expected: digest of the settings.
        folder: the layer cache.
    """

    def __init__(self, source: str, layers: Sequence[int], actual: str, expected: str, folder: Path) -> None:
        super().__init__(
            f"Layers {', '.join(map(str, layers))} of the language model '{source}' are not those of this plan (sha256 "
            f"{actual[:12]}, not {expected[:12]}): put the same weights there, or their layer cache into {folder}."
        )
        self.source, self.layers, self.actual, self.expected, self.folder = source, layers, actual, expected, folder


class DamagedLayers(UnreadableFile):
    """A folder of the layer cache is damaged, or does not hold the weights that its record names."""

    def __init__(self, folder: Path, problem: str) -> None:
        super().__init__(folder, problem, "remove it and fetch the layers again")
