"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from llmreg.plans.plans import Plans
from llmreg.training.checkpoints import checkpoint_path
from llmreg.training.distributed import DistributedContext
from llmreg.training.environment import write_debug
from llmreg.training.epoch import complete_epoch, is_best, learning_rate, train_epoch
from llmreg.training.interruption import note_stop_signals
from llmreg.training.loggers import Logger, open_loggers
from llmreg.training.options import FoldData, TrainingOptions
from llmreg.training.resuming import remove_leftovers
from llmreg.training.run import Run, set_up_run
from llmreg.training.samples import load_batches, number_samples
from llmreg.training.step import add_sums, mean_values


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
        batches, bar = _open_batches(run, options.workers), _open_progress_bar(run)
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
                "learning_rate": learning_rate(plans.training, run.state.epoch, run.state.epochs),
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
    loggers = open_loggers(run.fold.folder, (run.state.epoch, run.state.epochs), options.loggers, content)
    write_debug(run.fold.folder, run.context.device, {"processes": run.context.world, "plans": content})
    remove_leftovers(run.fold.folder, run.state)
    return loggers


def _open_batches(run: Run, workers: int) -> Generator[dict[str, Tensor], None, None]:
    numbers = number_samples(range(run.steps_done, run.steps_in_total), run.settings, run.context)
    return load_batches(run.pairs, numbers, workers, pin_memory=run.context.device.type == "cuda")


def _open_progress_bar(run: Run) -> tqdm[Any]:
    total, done = run.steps_in_total, run.steps_done
    return tqdm(total=total, initial=done, desc="Train", unit="step", smoothing=0.05, disable=not run.context.first)
