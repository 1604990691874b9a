"""The training loop: epochs of steps with their checkpoints, until the end or until a signal asks to stop."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from llmreg.errors import UserError
from llmreg.plans.plan_settings import Training
from llmreg.plans.plans import Plans
from llmreg.training.checkpoints import checkpoint_path, write_tensors
from llmreg.training.distributed import DistributedContext
from llmreg.training.environment import write_debug
from llmreg.training.loggers import Logger, open_loggers
from llmreg.training.options import FoldData, TrainingOptions
from llmreg.training.resuming import remove_leftovers
from llmreg.training.run import Run, set_up_run
from llmreg.training.samples import load_batches, number_samples
from llmreg.training.step import NonFiniteBatch, Sums, add_sums, mean_values
from llmreg.training.training_errors import NonFiniteLoss
from llmreg.training.validation import Validation


@dataclass
class StopRequest:
    """Whether a signal has asked the process to stop.

    Attributes:
        signal: number of the first signal that arrived, 0 when none has.
    """

    signal: int = 0


@contextmanager
def note_stop_signals() -> Iterator[StopRequest]:
    """Note SIGTERM and SIGINT instead of ending the process; a second SIGINT ends it as usual.

    A second SIGTERM does not end it: launchers and clusters send several, and the checkpoint that the first one asked
    for may be half written. Outside the main thread Python allows no handlers, and nothing is noted.
    """
    request = StopRequest()
    is_main_thread = threading.current_thread() is threading.main_thread()

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(number, handlers[number])
        request.signal = request.signal or number

    numbers = (signal.SIGTERM, signal.SIGINT) if is_main_thread else ()
    handlers: dict[int, Any] = {number: signal.signal(number, note) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def learning_rate(settings: Training, epoch: int, epochs: int) -> float:
    """The learning rate of an epoch, counted from 0: constant, or falling to zero at the end."""
    return settings.learning_rate * ((1 - epoch / epochs) ** 0.9 if settings.schedule == "polynomial" else 1)


def train_epoch(run: Run, batches: Iterator[dict[str, Tensor]], bar: "tqdm[Any]", request: StopRequest) -> Sums:
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
        # What a network draws itself (TransMorph skips blocks) depends on the number of the step alone, too.
        torch.manual_seed(settings.seed + (first_step + step) * context.world + context.rank)
        try:
            values = run.learner.step(batches, rate)
        except NonFiniteBatch as error:
            raise describe_non_finite_batch(error, run, first_step + step) from None
        sums = add_sums([sums, values])
        bar.update()
        bar.set_postfix(loss=f"{mean_values(values)['loss']:.3f}", refresh=False)
        stop_signal, due = context.reduce_max(request.signal, int(run.checkpoints.due))
        if stop_signal or due:
            together = add_sums(context.gather(sums))
            sums = together if context.first else {}
            run.state = run.state.model_copy(update={"step": step, "sums": together})
            run.checkpoints.write(run.state, "latest")
        run.stop(stop_signal)
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


def train(
    plans: Plans, configuration_name: str, fold: FoldData, options: TrainingOptions, context: DistributedContext
) -> Path:
    """Train a fold to the end and return the path of its final checkpoint.

    Raises:
        HoldsTraining: the folder holds a training that should not be resumed.
        OtherPlans: the folder holds a training of other plans.
        NothingToTrainOn: no pair can be trained on.
        NonFiniteLoss: the loss or its gradient is not finite.
        TrainingInterrupted: by SIGTERM or SIGINT; ``checkpoint_latest`` holds all that was learned.
    """
    run = set_up_run(plans, configuration_name, fold, options, context)
    with ExitStack() as resources:
        loggers = _open_logs(run, plans, options) if context.first else []
        numbers = number_samples(range(run.steps_done, run.steps_in_total), run.settings, context)
        batches = load_batches(run.pairs, numbers, options.workers, pin_memory=context.device.type == "cuda")
        bar = tqdm(
            total=run.steps_in_total,
            initial=run.steps_done,
            desc="Train",
            unit="step",
            smoothing=0.05,
            disable=not context.first,
        )
        request = resources.enter_context(note_stop_signals())
        for resource in (batches, bar, *loggers):
            resources.callback(resource.close)
        while run.state.epoch < run.state.epochs:
            start = time.monotonic()
            sums = train_epoch(run, batches, bar, request)
            training_seconds = time.monotonic() - start
            validation = run.validator.validate(run.network)
            row = {
                "epoch": run.state.epoch + 1,
                **mean_values(add_sums(context.gather(sums))),
                "validation_dice": validation.dice,
                "initial_dice": run.initial.dice,
                "validation_similarity": validation.similarity,
                "initial_similarity": run.initial.similarity,
                "validation_folding": validation.folding,
                "best": is_best(run, validation),
                "learning_rate": learning_rate(run.settings, run.state.epoch, run.state.epochs),
                "seconds": time.monotonic() - start,
                "training_seconds": training_seconds,
            }
            # The log comes before the checkpoint: a training that is killed in between does the epoch again.
            for logger in loggers:
                logger.log_epoch(row)
            complete_epoch(run, validation)
            run.stop(*context.reduce_max(request.signal))
    # A resumed training that had done all its steps is saved, too: it may have been killed before this.
    run.checkpoints.write(run.state, "final")
    return checkpoint_path(fold.folder, "final")


def _open_logs(run: Run, plans: Plans, options: TrainingOptions) -> list[Logger]:
    """Open the loggers, write down what the training runs on, and remove what would mislead readers of the folder."""
    content = plans.model_dump(mode="json")
    loggers = open_loggers(run.fold.folder, options.loggers, content, done=run.state.epoch, planned=run.state.epochs)
    write_debug(run.fold.folder, run.context.device, {"processes": run.context.world, "plans": content})
    remove_leftovers(run.fold.folder, run.state)
    return loggers
