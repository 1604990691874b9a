"""The errors of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from llmreg.errors import UserError


class MethodFailed(UserError):
    """A method of a comparison, or a step of it, failed.

    Attributes:
        method: its name.
        reason: what happened.
    """

    def __init__(self, method: str, reason: str) -> None:
        super().__init__(f"{method}: {reason}")
        self.method, self.reason = method, reason


class NoSharedPairs(UserError):
    """Methods were to be compared that have no scored pair in common.

    Attributes:
        methods: their titles.
    """

    def __init__(self, methods: Sequence[str]) -> None:
        super().__init__(f"No pair was scored for all of {', '.join(methods)}: name those that belong together.")
        self.methods = tuple(methods)


class NothingScored(UserError):
    """No method of a comparison could be scored.

    Attributes:
        failed: the reasons by the methods' names; empty when no method was named.
    """

    def __init__(self, failed: Mapping[str, str]) -> None:
        super().__init__(f"No method could be scored: {'; '.join(failed.values()) or 'none was named'}")
        self.failed = dict(failed)


class OtherBenchmark(UserError):
    """A folder holds a comparison with other settings.

    Attributes:
        folder: the folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"{folder} holds a comparison with other plans, another configuration or other minutes: choose another "
            "folder, or remove it."
        )
        self.folder = folder


class OtherTraining(UserError):
    """A model that was to be reused was trained in another way.

    Attributes:
        folder: of the model.
        difference: what was different, a clause.
    """

    def __init__(self, folder: Path, difference: str) -> None:
        super().__init__(f"{folder} was trained {difference}: remove it, or rename it.")
        self.folder, self.difference = folder, difference
