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
from llmreg.training.losses import gradient_l2, soft_dice
from llmreg.training.pairs import TrainingPairs, as_tensors, batches, common_labels, load_pair

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
        plans_digest=plans.digest(),
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
        list(plans.labels),
        configuration,
        plans.augmentation,
        (settings.seed, sum(map(ord, fold.name))),
    )
    if not len(pairs):
        raise UserError(
            f"Fold {fold.name} has no training pair with a structure annotated in both images: the Dice loss needs "
            "label maps in labelsTr."
        )
    validation = _validation_samples(plans, configuration_name, fold)
    initial = _validate(None, validation, 1, device, settings.autocast)
    log.info(
        "Training fold %s on %d pairs, %d to validate; %.1f M trainable parameters on %s; initial Dice %s",
        fold.name,
        len(pairs),
        len(validation),
        sum(p.numel() for p in parameters) / 1e6,
        device,
        _shown(initial),
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
        mean = {key: sum(row[key] for row in losses) / len(losses) for key in losses[0]}
        trained = time.monotonic() - start
        dice = _validate(network, validation, configuration.downsampling, device, settings.autocast)
        seconds = time.monotonic() - start
        rows.append(
            {
                "epoch": epoch + 1,
                **mean,
                "validation_dice": dice,
                "initial_dice": initial,
                "learning_rate": rate,
                "seconds": seconds,
                "training_seconds": trained,
            }
        )
        # Without validation pairs the last epoch is the best that is known.
        better = dice is None or state.best_dice is None or dice >= state.best_dice
        state = state.model_copy(
            update={
                "epoch": epoch + 1,
                "best_dice": dice if better else state.best_dice,
                "seconds": state.seconds + seconds,
            }
        )
        if better:
            checkpoint.save(fold.folder, "best", state, network)
        checkpoint.save(fold.folder, "latest", state, network, optimizer)
        progress.write_log(fold.folder, rows)
        progress.plot(fold.folder, rows)
        bar.write(
            f"epoch {epoch + 1}/{state.epochs}: loss {mean['loss']:.4f}, validation Dice {_shown(dice)}"
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


def _shown(dice: float | None) -> str:
    return "unknown" if dice is None else f"{dice:.4f}"


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
    dice_loss, _ = soft_dice(batch["moving_labels"], batch["fixed_labels"], full, batch["labels"])
    smoothness = gradient_l2(flow)
    loss = plans.loss.dice * dice_loss + plans.loss.smoothness * smoothness
    values = {"loss": loss.item(), "dice_loss": dice_loss.item(), "smoothness": smoothness.item()}
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
    configuration = plans.configuration(configuration_name)
    chosen = fold.validation_pairs[:: max(1, len(fold.validation_pairs) // plans.training.validation_pairs)]
    labels = common_labels(fold.volumes, chosen[: plans.training.validation_pairs], list(plans.labels))
    return [as_tensors(load_pair(fold.volumes, pair, configuration), ids) for pair, ids in labels.items() if ids]


@torch.inference_mode()
def _validate(
    network: nn.Module | None,
    samples: Iterable[dict[str, Tensor]],
    downsampling: int,
    device: torch.device,
    precision: str,
) -> float | None:
    """Mean soft Dice of the samples, of the unmoved images without a network; None without samples."""
    found = []
    if network is not None:
        network.eval()
    for sample in samples:
        batch = {key: value[None].to(device) for key, value in sample.items()}
        if network is None:
            flow = torch.zeros(1, 3, *batch["fixed"].shape[2:], device=device)
        else:
            with autocast(device, precision):
                _, flow = predict_flow(network, batch["moving"], batch["fixed"], downsampling)
        loss, _ = soft_dice(batch["moving_labels"], batch["fixed_labels"], flow, batch["labels"][0])
        found.append(1 - loss.item())
    return sum(found) / len(found) if found else None
