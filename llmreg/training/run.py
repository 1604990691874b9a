"""A training run: everything that is set up before its first step and lasts to its end."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import nn

from llmreg.data.dataset import pairs_digest
from llmreg.errors import NothingToTrainOn, TrainingInterrupted
from llmreg.networks.compilation import compile_or_keep
from llmreg.networks.factory import build_network
from llmreg.networks.resolution import GridNetwork
from llmreg.plans.plan_settings import Training
from llmreg.plans.plans import Plans
from llmreg.training.checkpoints import CheckpointWriter, TrainingState
from llmreg.training.distributed import DistributedContext
from llmreg.training.options import FoldData, TrainingOptions
from llmreg.training.resuming import resume_or_start
from llmreg.training.samples import Sampling, TrainingPairs, load_batches, number_samples
from llmreg.training.step import Learner
from llmreg.training.time_budget import TRIAL_STEPS, count_epochs, measure_step_seconds
from llmreg.training.validation import Validation, Validator

log = logging.getLogger(__name__)


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
    network = build_network(plans.network, configuration.network_shape[::-1], context.device, configuration.recompute)
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
    pairs = _open_training_pairs(plans, configuration_name, fold)
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
    compiled: nn.Module = model
    if options.compile:
        compiled = compile_or_keep(model, context.device, settings.autocast)
    learner = Learner(context.wrap(compiled), optimizer, context.device, plans.loss, settings)
    checkpoints = CheckpointWriter(fold.folder, network, optimizer, options.checkpoint_seconds, active=context.first)
    run = Run(fold, settings, context, model, learner, pairs, validator, initial, checkpoints, state)
    if options.minutes is not None and not run.steps_done:
        run.state = fit_epochs_to_minutes(run, optimizer, options.minutes, options.workers)
    elif options.minutes is not None:
        log.info("The training resumes up to the %d epoch(s) that its minutes were measured to hold.", state.epochs)
    return run


def fit_epochs_to_minutes(run: Run, optimizer: torch.optim.Optimizer, minutes: float, workers: int) -> TrainingState:
    """Return the state with as many epochs as fit into the minutes, measured on some steps that change nothing."""
    trial = load_batches(run.pairs, number_samples(range(TRIAL_STEPS), run.settings, run.context), workers)
    seconds = measure_step_seconds(run.learner, optimizer, trial)
    trial.close()
    # Processes that train together take the same steps.
    (epochs,) = run.context.reduce_max(count_epochs(minutes, seconds, run.settings.steps_per_epoch))
    if run.context.first:
        log.info("A step takes %.2f s: %d epoch(s) of %d fit.", seconds, epochs, run.settings.steps_per_epoch)
    return run.state.model_copy(update={"epochs": epochs})


def _open_training_pairs(plans: Plans, configuration_name: str, fold: FoldData) -> TrainingPairs:
    sampling = Sampling(plans.augmentation, plans.loss.uses_unlabelled_pairs, plans.training.bidirectional)
    seed = (plans.training.seed, sum(map(ord, fold.name)))
    pairs = TrainingPairs(fold.volumes, fold.training_pairs, plans.configuration(configuration_name), sampling, seed)
    if not len(pairs):
        raise NothingToTrainOn(fold.name, "has no training pair with a structure annotated in both images")
    return pairs
