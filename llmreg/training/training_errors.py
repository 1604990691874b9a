"""The errors of a training."""

from collections.abc import Sequence
from pathlib import Path

from llmreg.errors import Interrupted, UserError


class HoldsTraining(UserError):
    """A folder holds a training already, which was not to be resumed.

    Attributes:
        folder: the fold's folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(f"{folder} holds a training already: resume it, or remove the folder.")
        self.folder = folder


class NothingToTrainOn(UserError):
    """A fold has no pair that can be trained on.

    Attributes:
        fold: its name.
        problem: which pairs it lacks, a clause.
    """

    def __init__(self, fold: str, problem: str) -> None:
        super().__init__(f"Fold {fold} {problem}: add label maps to labelsTr, or train with image similarity.")
        self.fold, self.problem = fold, problem


class NonFiniteLoss(UserError):
    """The loss or its gradient is not finite.

    Attributes:
        step: number of the step, from 1.
        quantity: ``loss`` or ``gradient``.
        pairs: the pairs of the batch, each as ``moving onto fixed``.
        batch: the file that the batch is kept in.
    """

    def __init__(self, step: int, quantity: str, pairs: Sequence[str], values: str, batch: Path) -> None:
        super().__init__(
            f"The {quantity} is not finite at step {step}, of {', '.join(pairs)} ({values}; the batch is kept in "
            f"{batch}): look at these images, or train with a lower learning rate."
        )
        self.step, self.quantity, self.pairs, self.batch = step, quantity, tuple(pairs), batch


class TrainingInterrupted(Interrupted):
    """A training that was stopped by a signal after its state was saved.

    Attributes:
        done: number of steps that are done.
        total: number of steps that were planned.
    """

    def __init__(self, number: int, done: int, total: int) -> None:
        super().__init__(number, f"{done} of {total} steps are done and saved.")
        self.done, self.total = done, total
