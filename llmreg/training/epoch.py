"""An epoch of training: its steps, and the checkpoint that ends it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from llmreg.errors import NonFiniteLoss, UserError
from llmreg.plans.plan_settings import Training
from llmreg.training.checkpoints import write_tensors
from llmreg.training.interruption import StopRequest
from llmreg.training.run import Run
from llmreg.training.step import NonFiniteBatch, Sums, add_sums, mean_values
from llmreg.training.validation import Validation

POLYNOMIAL_POWER = 0.9


def learning_rate(settings: Training, epoch: int, epochs: int) -> float:
    """The learning rate of an epoch, counted from 0: constant, or falling to zero at the end."""
    rate = settings.learning_rate
    return rate * (1 - epoch / epochs) ** POLYNOMIAL_POWER if settings.schedule == "polynomial" else rate


def train_epoch(run: Run, batches: Iterator[dict[str, Tensor]], bar: tqdm[Any], request: StopRequest) -> Sums:
    """Take the steps that are left of the current epoch.

    A checkpoint is written within the epoch when the last one is old, or when the run is asked to stop.

    Returns:
        The sums over the epoch's steps of what is logged. Where a checkpoint was written within the epoch, the first
        process holds what all had summed up until then.

    Raises:
        NonFiniteLoss: the loss or its gradient is not finite.
        TrainingInterrupted: the run was asked to stop.
    """
    settings, context = run.settings, run.context
    rate = learning_rate(settings, run.state.epoch, run.state.epochs)
    sums = run.state.sums if context.first else {}
    first_step = run.state.epoch * settings.steps_per_epoch
    for step in range(run.state.step + 1, settings.steps_per_epoch + 1):
        # What a network draws itself (TransMorph skips blocks) follows from the number of the step alone, too.
        torch.manual_seed(settings.seed + (first_step + step) * context.world + context.rank)
        try:
            values = run.learner.step(batches, rate)
        except NonFiniteBatch as error:
            raise describe_non_finite_batch(error, run, first_step + step) from None
        sums = add_sums([sums, values])
        bar.update()
        bar.set_postfix(loss=f"{mean_values(values)['loss']:.3f}", refresh=False)
        signal, due = context.reduce_max(request.signal, int(run.checkpoints.due))
        if signal or due:
            together = add_sums(context.gather(sums))
            sums = together if context.first else {}
            run.state = run.state.model_copy(update={"step": step, "sums": together})
            run.checkpoints.write(run.state, "latest")
        run.stop(signal)
    return sums


def is_best(run: Run, validation: Validation) -> bool:
    """Whether no epoch before had a better score. Without validation pairs, the last epoch counts as the best."""
    score, best_score = validation.score, run.state.best_score
    return score is None or best_score is None or score >= best_score


def complete_epoch(run: Run, validation: Validation) -> None:
    """Count the epoch as done, and write its checkpoint."""
    best = is_best(run, validation)
    score = validation.score if best else run.state.best_score
    run.state = run.state.model_copy(update={"epoch": run.state.epoch + 1, "step": 0, "sums": {}, "best_score": score})
    run.checkpoints.write(run.state, *(["best"] if best else []), "latest")


def describe_non_finite_batch(error: NonFiniteBatch, run: Run, step: int) -> UserError:
    """Keep a batch whose loss or gradient is not finite, and return the error that names its pairs."""
    quantity = "gradient" if math.isfinite(error.values["loss"]) else "loss"
    rank = f"_process_{run.context.rank}" if run.context.world > 1 else ""
    if quantity == "gradient" and rank:
        return UserError(f"The loss or gradient of some process is not finite at step {step}: see its message.")
    pairs = [run.pairs.pair(number) for number in error.batch["sample"].tolist()]
    path = run.fold.folder / f"not_finite_step_{step}{rank}.safetensors"
    write_tensors(path, {key: value.cpu().contiguous() for key, value in error.batch.items()})
    values = ", ".join(f"{name} {value:g}" for name, value in error.values.items())
    return NonFiniteLoss(step, quantity, [f"{pair.moving} onto {pair.fixed}" for pair in pairs], values, path)
