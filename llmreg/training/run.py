"""Training one fold."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from llmreg.data.dataset import Pair, pairs_digest
from llmreg.errors import Interrupted, UserError
from llmreg.networks.compilation import compiled
from llmreg.networks.factory import build_network
from llmreg.plans.plans import Plans, Training
from llmreg.training import checkpoints as checkpoint
from llmreg.training.budget import TRIAL_STEPS, epochs_within, seconds_per_step
from llmreg.training.distributed import DistributedContext
from llmreg.training.environment import write_debug
from llmreg.training.finetuning import transfer_weights
from llmreg.training.interruption import noted_signals
from llmreg.training.loggers import Logger, open_loggers
from llmreg.training.samples import Sampling, TrainingPairs, batches, numbered
from llmreg.training.step import Learner, NotFinite, added, means
from llmreg.training.validation import validate, validation_samples

log = logging.getLogger(__name__)

POLYNOMIAL_POWER = 0.9
# Beside that of every epoch, a checkpoint is written when the last one is so old.
CHECKPOINT_SECONDS = 300.0


@dataclass(frozen=True)
class Fold:
    """What a fold is trained on and where.

    Attributes:
        name: ``0`` ... or ``all``.
        training_pairs: drawn from at random.
        validation_pairs: looked at after each epoch, in this order.
        volumes: folder of the preprocessed volumes.
        folder: where checkpoints and logs go.
    """

    name: str
    training_pairs: Sequence[Pair]
    validation_pairs: Sequence[Pair]
    volumes: Path
    folder: Path


@dataclass(frozen=True)
class Run:
    """How a training is run, beside what the plans say.

    Attributes:
        epochs: instead of the plans' number.
        minutes: as many epochs as fit into them, instead of a number; measured when the training starts.
        go_on: with the checkpoint that the folder holds.
        workers: processes that load and augment.
        compile: whether to compile the network.
        loggers: names of optional loggers.
        pretrained: checkpoint of which a training that starts takes over what fits.
    """

    epochs: int | None = None
    minutes: float | None = None
    go_on: bool = False
    workers: int = 1
    compile: bool = False
    loggers: tuple[str, ...] = ()
    pretrained: Path | None = None


def train(plans: Plans, configuration_name: str, fold: Fold, run: Run, ranks: DistributedContext) -> Path:
    """Train a fold to the end and return the path of its final checkpoint.

    Raises:
        UserError: the folder holds a training of other plans, or one that ``go_on`` should be given for; nothing can be
            trained on; the loss is not finite.
        Interrupted: by SIGTERM or SIGINT; ``checkpoint_latest`` holds all that was learned.
    """
    configuration, settings = plans.configuration(configuration_name), plans.training
    torch.manual_seed(settings.seed)
    network = build_network(plans.network, configuration.network_shape[::-1], ranks.device, configuration.recompute)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=settings.learning_rate, fused=ranks.device.type in ("cpu", "cuda"))
    state = checkpoint.State(
        plans_digest=plans.digest(configuration_name),
        llm_sha256=network.llm_sha256,
        configuration=configuration_name,
        fold=fold.name,
        epochs=run.epochs or settings.epochs,
        processes=ranks.world,
        pairs_sha256=pairs_digest(fold.training_pairs),
    )
    state = _started(fold.folder, state, network, optimizer, run)
    pairs = _training_pairs(plans, configuration_name, fold)
    samples = validation_samples(plans, configuration, fold.validation_pairs, fold.volumes, ranks)
    initial = validate(None, samples, plans, configuration.downsampling, ranks)
    log.info(
        "Training fold %s on %d pairs; %.1f M trainable parameters on %s, %d process(es); initial %s",
        fold.name,
        len(pairs),
        sum(one.numel() for one in trained) / 1e6,
        ranks.device,
        ranks.world,
        initial,
    )
    called: nn.Module = network
    if run.compile:
        called = compiled(network, configuration.network_shape[::-1], ranks.device, settings.autocast)
    learner = Learner(plans, configuration.downsampling, ranks.wrapped(called), optimizer, ranks.device)
    if run.minutes is not None and not (state.epoch or state.step):
        state = _fitted(state, run, learner, optimizer, pairs, settings, ranks)
    elif run.minutes is not None:
        log.info("The training goes on to the %d epoch(s) that its minutes were found to hold.", state.epochs)
    loggers: list[Logger] = []
    if ranks.first:
        described = plans.model_dump(mode="json")
        loggers = open_loggers(fold.folder, (state.epoch, state.epochs), run.loggers, described)
        write_debug(fold.folder, ranks.device, {"processes": ranks.world, "plans": described})
        _clean(fold.folder, state)

    steps = range(state.epoch * settings.steps_per_epoch + state.step, state.epochs * settings.steps_per_epoch)
    loading = batches(pairs, numbered(steps, settings, ranks), run.workers, ranks.device.type == "cuda")
    bar = tqdm(
        total=steps.stop, initial=steps.start, desc="Train", unit="step", smoothing=0.05, disable=not ranks.first
    )
    sums = state.sums if ranks.first else {}
    saved = time.monotonic()
    with ExitStack() as ending:
        request = ending.enter_context(noted_signals())
        for resource in (loading, bar, *loggers):
            ending.callback(resource.close)
        for epoch in range(state.epoch, state.epochs):
            before = epoch * settings.steps_per_epoch
            began, rate = time.monotonic(), _learning_rate(plans, epoch, state.epochs)
            for step in range(state.step + 1, settings.steps_per_epoch + 1):
                # What a network draws (TransMorph skips blocks) follows from the number of the step alone, too.
                torch.manual_seed(settings.seed + (before + step) * ranks.world + ranks.rank)
                try:
                    values = learner.step(loading, rate)
                except NotFinite as error:
                    raise _explained(error, fold, pairs, before + step, ranks) from None
                sums = added([sums, values])
                bar.update()
                bar.set_postfix(loss=f"{means(values)['loss']:.3f}", refresh=False)
                stop, due = ranks.largest(request.signal, int(time.monotonic() - saved > CHECKPOINT_SECONDS))
                if stop or due:
                    together = added(ranks.gather(sums))
                    sums = together if ranks.first else {}
                    state = state.model_copy(update={"step": step, "sums": together})
                    _save(fold.folder, ("latest",), state, network, optimizer, ranks)
                    saved = time.monotonic()
                if stop:
                    raise _stopped(stop, before + step, steps, ranks)
            trained_for = time.monotonic() - began
            found = validate(network, samples, plans, configuration.downsampling, ranks)
            # Without validation pairs the last epoch is the best that is known.
            best = found.score is None or state.best_score is None or found.score >= state.best_score
            row = {
                "epoch": epoch + 1,
                **means(added(ranks.gather(sums))),
                "validation_dice": found.dice,
                "initial_dice": initial.dice,
                "validation_similarity": found.similarity,
                "initial_similarity": initial.similarity,
                "validation_folding": found.folding,
                "best": best,
                "learning_rate": rate,
                "seconds": time.monotonic() - began,
                "training_seconds": trained_for,
            }
            # The log comes before the checkpoint: of a training that is killed in between, the epoch is done again.
            for logger in loggers:
                logger.epoch(row)
            sums = {}
            score = found.score if best else state.best_score
            state = state.model_copy(update={"epoch": epoch + 1, "step": 0, "sums": {}, "best_score": score})
            _save(fold.folder, ("best", "latest") if best else ("latest",), state, network, optimizer, ranks)
            saved = time.monotonic()
            (stop,) = ranks.largest(request.signal)
            if stop:
                raise _stopped(stop, before + settings.steps_per_epoch, steps, ranks)
    # Also where a training that had done all its steps is gone on with: it may have been ended before this.
    _save(fold.folder, ("final",), state, network, optimizer, ranks)
    return checkpoint.path_of(fold.folder, "final")


def _started(
    folder: Path, fresh: checkpoint.State, network: nn.Module, optimizer: torch.optim.Optimizer, run: Run
) -> checkpoint.State:
    """Where the training starts, with network and optimiser as they were there."""
    latest = checkpoint.path_of(folder, "latest")
    if not latest.exists():
        if run.go_on:
            log.info("%s holds no checkpoint to go on from: training starts.", folder)
        if run.pretrained is not None:
            log.info("From %s: %s.", run.pretrained, transfer_weights(network, run.pretrained))
        return fresh
    if not run.go_on:
        raise UserError(f"{folder} holds a training already: add --continue to go on with it, or remove the folder.")
    stored = checkpoint.read_state(latest)
    if stored.plans_digest != fresh.plans_digest:
        raise UserError(f"{latest} was trained with other plans: name these with --as, or remove the folder.")
    if stored.processes != fresh.processes:
        log.warning(
            "%s was trained by %d process(es), not %d: a step now sees another number of pairs, and some that it saw.",
            latest,
            stored.processes,
            fresh.processes,
        )
    if stored.pairs_sha256 not in (None, fresh.pairs_sha256):
        log.warning("%s was trained on other pairs so far: the split or the dataset has changed since.", latest)
    checkpoint.load(latest, network, optimizer)
    # Without a new number, a training goes on to the one it was started with.
    epochs = max(run.epochs or stored.epochs, stored.epoch)
    return stored.model_copy(update={"epochs": epochs, "processes": fresh.processes})


def _fitted(
    state: checkpoint.State,
    run: Run,
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    pairs: TrainingPairs,
    settings: Training,
    ranks: DistributedContext,
) -> checkpoint.State:
    """The state with as many epochs as fit into the run's minutes."""
    assert run.minutes is not None
    trial = batches(pairs, numbered(range(TRIAL_STEPS), settings, ranks), run.workers)
    seconds = seconds_per_step(learner, optimizer, trial)
    trial.close()
    # Processes that train together do the same steps.
    (epochs,) = ranks.largest(epochs_within(run.minutes, seconds, settings.steps_per_epoch))
    if ranks.first:
        log.info("A step takes %.2f s: %d epoch(s) of %d fit.", seconds, epochs, settings.steps_per_epoch)
    return state.model_copy(update={"epochs": epochs})


def _clean(folder: Path, state: checkpoint.State) -> None:
    """Remove what was half written, and the end of a training that is to be longer: it would pass for the new one."""
    checkpoint.remove_debris(folder)
    if state.epoch < state.epochs:
        for path in (checkpoint.path_of(folder, "final"), checkpoint.path_of(folder, "final").with_suffix(".json")):
            path.unlink(missing_ok=True)


def _training_pairs(plans: Plans, configuration_name: str, fold: Fold) -> TrainingPairs:
    settings = plans.training
    sampling = Sampling(plans.augmentation, plans.loss.similarity > 0, settings.bidirectional)
    seed = (settings.seed, sum(map(ord, fold.name)))
    pairs = TrainingPairs(fold.volumes, fold.training_pairs, plans.configuration(configuration_name), sampling, seed)
    if not len(pairs):
        raise UserError(
            f"Fold {fold.name} has no training pair with a structure annotated in both images: add label maps to "
            "labelsTr, or train with image similarity (--set loss.similarity=1 --as NAME)."
        )
    return pairs


def _learning_rate(plans: Plans, epoch: int, epochs: int) -> float:
    rate = plans.training.learning_rate
    return rate * (1 - epoch / epochs) ** POLYNOMIAL_POWER if plans.training.schedule == "polynomial" else rate


def _save(
    folder: Path,
    names: Sequence[str],
    state: checkpoint.State,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    ranks: DistributedContext,
) -> None:
    """Write checkpoints, the optimiser's moments with the latest one."""
    if ranks.first:
        for name in names:
            checkpoint.save(folder, name, state, network, optimizer if name == "latest" else None)


def _stopped(number: int, done: int, steps: range, ranks: DistributedContext) -> Interrupted:
    # The launcher ends the others when the first one goes, so all wait for the checkpoint.
    ranks.wait()
    return Interrupted(number, f"{done} of {steps.stop} steps are done; go on with --continue.")


def _explained(error: NotFinite, fold: Fold, pairs: TrainingPairs, step: int, ranks: DistributedContext) -> UserError:
    """The pairs of a batch whose loss or gradient is not finite, which is kept to be looked at."""
    what = "gradient" if math.isfinite(error.values["loss"]) else "loss"
    if what == "gradient" and ranks.world > 1:
        return UserError(f"The loss or gradient of some process is not finite at step {step}: see what it says.")
    names = ", ".join(f"{pair.moving} onto {pair.fixed}" for pair in map(pairs.pair, error.batch["sample"].tolist()))
    dump = fold.folder / f"not_finite_step_{step}{f'_process_{ranks.rank}' if ranks.world > 1 else ''}.safetensors"
    checkpoint.write_tensors(dump, {key: value.cpu().contiguous() for key, value in error.batch.items()})
    values = ", ".join(f"{name} {value:g}" for name, value in error.values.items())
    return UserError(
        f"The {what} is not finite at step {step}, of {names} ({values}; the batch is kept in {dump}): look at these "
        "images, or train with a lower learning rate (--set training.learning_rate=1e-4 --as NAME)."
    )
