"""A training run: what is set up before its first step and lasts to its end, the number of epochs included."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from llmreg.data.dataset import pairs_digest
from llmreg.networks.factory import build_network, compile_or_keep
from llmreg.networks.registration_network import GridNetwork
from llmreg.plans.plan_settings import Training
from llmreg.plans.plans import Plans
from llmreg.training.checkpoints import CheckpointWriter, TrainingState
from llmreg.training.distributed import DistributedContext
from llmreg.training.options import FoldData, TrainingOptions
from llmreg.training.resuming import resume_or_start
from llmreg.training.samples import TrainingPairs, load_batches, number_samples
from llmreg.training.step import Learner
from llmreg.training.training_errors import TrainingInterrupted
from llmreg.training.validation import Validation, Validator

log = logging.getLogger(__name__)

TRIAL_STEPS = 5


@dataclass
class Run:
    """A training under way in one of its processes.

    Attributes:
        fold: what it is trained on, and where results go.
        settings: the optimiser's settings.
        context: this process among those that train together.
        network: as it predicts; the network inside it is the one whose weights checkpoints hold.
        learner: takes the steps.
        pairs: the training pairs.
        validator: evaluates the network after an epoch.
        initial: the validation pairs' scores without a network.
        checkpoints: writes checkpoints, in the first process.
        state: where the training stands.
    """

    fold: FoldData
    settings: Training
    context: DistributedContext
    network: GridNetwork
    learner: Learner
    pairs: TrainingPairs
    validator: Validator
    initial: Validation
    checkpoints: CheckpointWriter
    state: TrainingState

    @property
    def steps_done(self) -> int:
        """Number of steps taken since the training started."""
        return self.state.epoch * self.settings.steps_per_epoch + self.state.step

    @property
    def steps_in_total(self) -> int:
        """Number of steps when all epochs are done."""
        return self.state.epochs * self.settings.steps_per_epoch

    def stop(self, signal: int) -> None:
        """End the run because of a signal, after its state was saved; a signal of 0 does nothing.

        Raises:
            TrainingInterrupted: the signal is not 0.
        """
        if signal:
            # The launcher ends the other processes when the first one ends, so all of them wait for the checkpoint.
            self.context.wait()
            raise TrainingInterrupted(signal, self.steps_done, self.steps_in_total)


def set_up_run(
    plans: Plans, configuration_name: str, fold: FoldData, options: TrainingOptions, context: DistributedContext
) -> Run:
    """Build the network, load what it resumes from, and prepare the pairs.

    Raises:
        UserError: see :func:`llmreg.training.loop.train`.
    """
    configuration, settings = plans.configuration(configuration_name), plans.training
    torch.manual_seed(settings.seed)
    network = build_network(
        plans.network, configuration.network_shape[::-1], context.device, recompute=configuration.recompute
    )
    model = GridNetwork(network, configuration.downsampling)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=settings.learning_rate, fused=context.device.type in ("cpu", "cuda"))
    initial_state = TrainingState(
        plans_digest=plans.digest(configuration_name),
        llm_sha256=network.llm_sha256,
        configuration=configuration_name,
        fold=fold.name,
        epochs=options.epochs or settings.epochs,
        processes=context.world,
        pairs_sha256=pairs_digest(fold.training_pairs),
    )
    state = resume_or_start(fold.folder, initial_state, network, optimizer, options)
    pairs = TrainingPairs(
        fold, configuration, settings, plans.augmentation, use_unlabelled=plans.loss.uses_unlabelled_pairs
    )
    validator = Validator(fold, configuration, plans.loss, settings, context)
    initial = validator.validate(model, unmoved=True)
    log.info(
        "Training fold %s on %d pairs; %.1f M trainable parameters on %s, %d process(es); initial %s",
        fold.name,
        len(pairs),
        sum(parameter.numel() for parameter in trained) / 1e6,
        context.device,
        context.world,
        initial,
    )
    compiled = compile_or_keep(model, context.device, settings.autocast) if options.compile else model
    run = Run(
        fold=fold,
        settings=settings,
        context=context,
        network=model,
        learner=Learner(context.wrap(compiled), optimizer, context.device, plans.loss, settings),
        pairs=pairs,
        validator=validator,
        initial=initial,
        checkpoints=CheckpointWriter(fold.folder, network, optimizer, options.checkpoint_seconds, active=context.first),
        state=state,
    )
    if options.minutes is not None and not run.steps_done:
        run.state = fit_epochs_to_minutes(run, optimizer, options.minutes, options.workers)
    elif options.minutes is not None:
        log.info("The training resumes up to the %d epoch(s) that its minutes were measured to hold.", state.epochs)
    return run


def fit_epochs_to_minutes(
    run: Run,
    optimizer: torch.optim.Optimizer,
    minutes: float,
    workers: int,
    clock: Callable[[], float] = time.monotonic,
) -> TrainingState:
    """Return the state with as many epochs as fit into the minutes, at least one; validation comes on top.

    The time of a step is measured without a trace: the learning rate is zero, and the moments are forgotten.

    Args:
        run: a training that has not begun.
        optimizer: its optimiser.
        minutes: the time that there is.
        workers: number of processes that load pairs.
        clock: returns seconds.
    """
    batches = load_batches(run.pairs, number_samples(range(TRIAL_STEPS), run.settings, run.context), workers)
    durations = []
    with torch.random.fork_rng():
        for _ in range(TRIAL_STEPS):
            start = clock()
            run.learner.step(batches, 0.0)
            durations.append(clock() - start)
    optimizer.state.clear()
    batches.close()
    # The first step takes longer: memory is set aside, kernels are chosen.
    seconds, steps = median(durations[1:]), run.settings.steps_per_epoch
    # Processes that train together take the same steps.
    (epochs,) = run.context.reduce_max(max(1, int(60 * minutes / (seconds * steps))))
    log.info("A step takes %.2f s: %d epoch(s) of %d fit.", seconds, epochs, steps)
    return run.state.model_copy(update={"epochs": epochs})
