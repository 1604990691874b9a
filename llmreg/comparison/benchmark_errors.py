"""The errors of a comparison."""

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


class OtherTraining(UserError):
    """A model that was to be reused was trained in another way.

    Attributes:
        folder: of the model.
        difference: what was different, a clause.
    """

    def __init__(self, folder: Path, difference: str) -> None:
        super().__init__(f"{folder} was trained {difference}: remove it, or rename it.")
        self.folder, self.difference = folder, difference
