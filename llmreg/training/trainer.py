"""Training one fold of LLM-Morph."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from llmreg.dataset import Pair
from llmreg.devices import autocast
from llmreg.errors import UserError
from llmreg.geometry import warping
from llmreg.network.factory import build_network
from llmreg.preprocessing.plans import Plans
from llmreg.training import checkpoint, progress
from llmreg.training.losses import soft_dice
from llmreg.training.objective import terms
from llmreg.training.pairs import Sampling, TrainingPairs, as_tensors, batches, common_labels, load_pair

log = logging.getLogger(__name__)

POLYNOMIAL_POWER = 0.9


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


def predict_flow(network: nn.Module, moving: Tensor, fixed: Tensor, downsampling: int) -> tuple[Tensor, Tensor]:
    """The network's displacement, and the same upsampled to the images' grid (voxels of each)."""
    if downsampling > 1:
        moving, fixed = (warping.downsample_image(image, downsampling) for image in (moving, fixed))
    flow: Tensor = network(moving, fixed)
    return flow, warping.upsample(flow, downsampling) if downsampling > 1 else flow


def train(
    plans: Plans,
    configuration_name: str,
    fold: Fold,
    device: torch.device,
    epochs: int | None = None,
    go_on: bool = False,
    workers: int = 1,
) -> Path:
    """Train a fold to the end and return the path of its final checkpoint.

    Raises:
        UserError: the folder holds a training of other plans, or one that ``go_on`` should be given for.
    """
    configuration = plans.configuration(configuration_name)
    settings = plans.training
    torch.manual_seed(settings.seed)
    network = build_network(plans.network, configuration.network_shape[::-1], device, configuration.recompute)
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate, fused=device.type in ("cpu", "cuda"))
    state = checkpoint.State(
        plans_digest=plans.digest(configuration_name),
        llm_sha256=network.llm_sha256,
        configuration=configuration_name,
        fold=fold.name,
        epochs=epochs or settings.epochs,
    )
    state = _resumed(fold.folder, state, network, optimizer, go_on, epochs)
    rows = progress.read_log(fold.folder, state.epoch)
    pairs = TrainingPairs(
        fold.volumes,
        fold.training_pairs,
        configuration,
        Sampling(plans.augmentation, plans.loss.similarity > 0, settings.bidirectional),
        (settings.seed, sum(map(ord, fold.name))),
    )
    if not len(pairs):
        raise UserError(
            f"Fold {fold.name} has no training pair with a structure annotated in both images: add label maps to "
            "labelsTr, or train with image similarity (--set loss.similarity=1 --as NAME)."
        )
    validation = _validation_samples(plans, configuration_name, fold)
    initial = _validate(None, validation, plans, configuration.downsampling, device)
    log.info(
        "Training fold %s on %d pairs, %d to validate; %.1f M trainable parameters on %s; initial %s",
        fold.name,
        len(pairs),
        len(validation),
        sum(p.numel() for p in parameters) / 1e6,
        device,
        initial,
    )
    bar = tqdm(
        total=state.epochs * settings.steps_per_epoch,
        initial=state.epoch * settings.steps_per_epoch,
        unit="step",
        desc="Train",
        smoothing=0.05,
    )
    per_epoch = settings.steps_per_epoch * settings.batch_size
    remaining = range(state.epoch * per_epoch, state.epochs * per_epoch)
    loader = batches(pairs, remaining, settings.batch_size, workers, pin_memory=device.type == "cuda")
    for epoch in range(state.epoch, state.epochs):
        start = time.monotonic()
        rate = _learning_rate(plans, epoch, state.epochs)
        for group in optimizer.param_groups:
            group["lr"] = rate
        network.train()
        losses = [
            _step(network, optimizer, next(loader), plans, configuration.downsampling, device, bar)
            for _ in range(settings.steps_per_epoch)
        ]
        mean = _means(losses)
        trained = time.monotonic() - start
        found = _validate(network, validation, plans, configuration.downsampling, device)
        seconds = time.monotonic() - start
        rows.append(
            {
                "epoch": epoch + 1,
                **mean,
                "validation_dice": found.dice,
                "initial_dice": initial.dice,
                "validation_similarity": found.similarity,
                "initial_similarity": initial.similarity,
                "learning_rate": rate,
                "seconds": seconds,
                "training_seconds": trained,
            }
        )
        # Without validation pairs the last epoch is the best that is known.
        score = found.score
        better = score is None or state.best_score is None or score >= state.best_score
        state = state.model_copy(
            update={
                "epoch": epoch + 1,
                "best_score": score if better else state.best_score,
                "seconds": state.seconds + seconds,
            }
        )
        if better:
            checkpoint.save(fold.folder, "best", state, network)
        checkpoint.save(fold.folder, "latest", state, network, optimizer)
        progress.write_log(fold.folder, rows)
        progress.plot(fold.folder, rows)
        bar.write(
            f"epoch {epoch + 1}/{state.epochs}: loss {mean['loss']:.4f}, validation {found}"
            f"{' (best)' if better else ''}, {seconds:.0f} s"
        )
    bar.close()
    checkpoint.save(fold.folder, "final", state, network)
    return checkpoint.path_of(fold.folder, "final")


def _resumed(
    folder: Path,
    fresh: checkpoint.State,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    go_on: bool,
    epochs: int | None,
) -> checkpoint.State:
    latest = checkpoint.path_of(folder, "latest")
    if not latest.exists():
        if go_on:
            log.info("%s holds no checkpoint to go on from: training starts.", folder)
        return fresh
    if not go_on:
        raise UserError(f"{folder} holds a training already: add --continue to go on with it, or remove the folder.")
    stored = checkpoint.read_state(latest)
    if stored.plans_digest != fresh.plans_digest:
        raise UserError(f"{latest} was trained with other plans: name these with --as, or remove the folder.")
    checkpoint.load(latest, network, optimizer)
    # Without a new number, a training goes on to the one it was started with.
    return stored.model_copy(update={"epochs": max(epochs or stored.epochs, stored.epoch)})


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each value over the steps that have it: no pair need be annotated."""
    keys = {key for row in rows for key in row}
    values = {key: [row[key] for row in rows if key in row] for key in sorted(keys)}
    return {key: sum(found) / len(found) for key, found in values.items()}


def _learning_rate(plans: Plans, epoch: int, epochs: int) -> float:
    rate = plans.training.learning_rate
    return rate * (1 - epoch / epochs) ** POLYNOMIAL_POWER if plans.training.schedule == "polynomial" else rate


def _step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Tensor],
    plans: Plans,
    downsampling: int,
    device: torch.device,
    bar: Any,
) -> dict[str, float]:
    batch = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
    with autocast(device, plans.training.autocast):
        flow, full = predict_flow(network, batch["moving"], batch["fixed"], downsampling)
    found = terms(batch, flow, full, plans.loss, downsampling)
    loss = found.total(plans.loss)
    values = {"loss": loss.item(), "smoothness": found.smoothness.item()}
    if found.dice is not None:
        values["dice_loss"] = found.dice.item()
    if found.similarity is not None:
        values["similarity_loss"] = found.similarity.item()
    if not torch.isfinite(loss):
        raise UserError(
            f"The loss is {values['loss']} at step {bar.n + 1}: train with a lower learning rate "
            "(--set training.learning_rate=1e-4 --as NAME)."
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if plans.training.clip_gradient is not None:
        nn.utils.clip_grad_norm_([p for p in network.parameters() if p.requires_grad], plans.training.clip_gradient)
    optimizer.step()
    bar.update()
    bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
    return values


def _validation_samples(plans: Plans, configuration_name: str, fold: Fold) -> list[dict[str, Tensor]]:
    """Pairs that labels can judge, or with image similarity any; turned about as well if that is trained."""
    configuration = plans.configuration(configuration_name)
    chosen = fold.validation_pairs[:: max(1, len(fold.validation_pairs) // plans.training.validation_pairs)]
    labels = common_labels(fold.volumes, chosen[: plans.training.validation_pairs])
    if plans.training.bidirectional:
        labels |= {Pair(pair.moving, pair.fixed): ids for pair, ids in labels.items()}
    return [
        as_tensors(load_pair(fold.volumes, pair, configuration), ids)
        for pair, ids in labels.items()
        if ids or plans.loss.similarity
    ]


@dataclass(frozen=True)
class Validation:
    """Means over validation pairs; None where nothing tells.

    Attributes:
        dice: soft Dice.
        similarity: the image term, lower is better.
    """

    dice: float | None
    similarity: float | None

    @property
    def score(self) -> float | None:
        """Higher is better: Dice, or without labels the image term."""
        return self.dice if self.dice is not None or self.similarity is None else -self.similarity

    def __str__(self) -> str:
        if self.dice is None and self.similarity is not None:
            return f"similarity loss {self.similarity:.4f}"
        return f"Dice {'-' if self.dice is None else format(self.dice, '.4f')}"


@torch.inference_mode()
def _validate(
    network: nn.Module | None,
    samples: Iterable[dict[str, Tensor]],
    plans: Plans,
    downsampling: int,
    device: torch.device,
) -> Validation:
    """How well the samples are aligned; without a network, how well they are as they lie."""
    dice, similarity = [], []
    if network is not None:
        network.eval()
    for sample in samples:
        batch = {key: value[None].to(device) for key, value in sample.items()}
        if network is None:
            full = torch.zeros(1, 3, *batch["fixed"].shape[2:], device=device)
            flow = warping.downsample_image(full, downsampling)
        else:
            with autocast(device, plans.training.autocast):
                flow, full = predict_flow(network, batch["moving"], batch["fixed"], downsampling)
        if len(sample["labels"]):
            # Over all voxels, unlike in the loss: a field that looks away from the moving image gains nothing.
            loss, _ = soft_dice(batch["moving_labels"], batch["fixed_labels"], full, batch["labels"][0])
            dice.append(1 - loss.item())
        found = terms(batch, flow, full, plans.loss, downsampling).similarity
        if found is not None:
            similarity.append(found.item())
    return Validation(*(sum(values) / len(values) if values else None for values in (dice, similarity)))
