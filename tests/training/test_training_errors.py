"""The errors of a training carry what a program needs, and say it in a sentence."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from llmreg.errors import Interrupted, UserError
from llmreg.training.training_errors import HoldsTraining, NonFiniteLoss, NothingToTrainOn, TrainingInterrupted


def test_a_folder_that_holds_a_training_is_named() -> None:
    error = HoldsTraining(Path("model/fold_0"))
    assert error.folder == Path("model/fold_0")
    assert "model/fold_0" in str(error)


def test_a_fold_without_pairs_says_which_it_lacks() -> None:
    error = NothingToTrainOn("2", "has no labelled pair")
    assert (error.fold, error.problem) == ("2", "has no labelled pair")
    assert str(error).startswith("Fold 2 has no labelled pair:")


@pytest.mark.parametrize("quantity", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_names_its_step_pairs_and_batch(quantity: str) -> None:
    error = NonFiniteLoss(7, quantity, ["B onto A", "D onto C"], "loss nan", Path("fold_0/batch.safetensors"))
    assert (error.step, error.quantity, error.pairs) == (7, quantity, ("B onto A", "D onto C"))
    assert error.batch == Path("fold_0/batch.safetensors")
    for part in (quantity, "step 7", "B onto A, D onto C", "loss nan", str(error.batch)):
        assert part in str(error)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_training_knows_how_far_it_came(number: signal.Signals, code: int) -> None:
    error = TrainingInterrupted(number, 6, 24)
    assert (error.done, error.total, error.exit_code) == (6, 24, code)
    assert "6 of 24 steps" in str(error)


def test_an_interruption_is_no_mistake_of_the_user() -> None:
    """The command line ends with other exit codes for the two."""
    kinds = (HoldsTraining, NothingToTrainOn, NonFiniteLoss)
    assert all(issubclass(kind, UserError) and not issubclass(kind, Interrupted) for kind in kinds)
    assert issubclass(TrainingInterrupted, Interrupted)
    assert not issubclass(TrainingInterrupted, UserError)
