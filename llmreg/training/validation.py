"""Looking at some validation pairs after each epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from llmreg.data.dataset import Pair
from llmreg.devices import autocast
from llmreg.geometry import warping
from llmreg.networks.resolution import predict_flow
from llmreg.plans.plans import Configuration, Plans
from llmreg.similarity.losses import soft_dice
from llmreg.training.distributed import DistributedContext
from llmreg.training.objective import Predicted, similarity
from llmreg.training.samples import as_tensors, common_labels, load_pair


@dataclass(frozen=True)
class Validation:
    """Means over validation pairs; None where nothing tells.

    Attributes:
        dice: soft Dice.
        similarity: the image term, lower is better.
        folding: percentage of the network's voxels whose Jacobian determinant is not above zero.
    """

    dice: float | None
    similarity: float | None
    folding: float | None

    @property
    def score(self) -> float | None:
        """Higher is better: Dice, or without labels the image term."""
        return self.dice if self.dice is not None or self.similarity is None else -self.similarity

    def __str__(self) -> str:
        if self.dice is None and self.similarity is not None:
            return f"similarity loss {self.similarity:.4f}"
        return f"Dice {'-' if self.dice is None else format(self.dice, '.4f')}"


def validation_samples(
    plans: Plans, configuration: Configuration, pairs: Sequence[Pair], volumes: Path, ranks: DistributedContext
) -> list[dict[str, Tensor]]:
    """This process's share of the pairs that labels can judge, or with image similarity any.

    They are turned about as well if that is trained.
    """
    chosen = pairs[:: max(1, len(pairs) // plans.training.validation_pairs)]
    labels = common_labels(volumes, chosen[: plans.training.validation_pairs])
    if plans.training.bidirectional:
        labels |= {Pair(pair.moving, pair.fixed): ids for pair, ids in labels.items()}
    judged = [(pair, ids) for pair, ids in labels.items() if ids or plans.loss.similarity]
    return [as_tensors(load_pair(volumes, pair, configuration), ids) for pair, ids in judged[ranks.rank :: ranks.world]]


def validate(
    network: nn.Module | None,
    samples: Sequence[dict[str, Tensor]],
    plans: Plans,
    downsampling: int,
    ranks: DistributedContext,
) -> Validation:
    """How well the pairs of all processes are aligned; without a network, how well they are as they lie."""
    if network is not None:
        network.eval()
    own = [_judged(network, sample, plans, downsampling, ranks.device) for sample in samples]
    found = [row for share in ranks.gather(own) for row in share]

    def mean(key: str) -> float | None:
        values = [row[key] for row in found if key in row]
        return sum(values) / len(values) if values else None

    return Validation(mean("dice"), mean("similarity"), mean("folding"))


@torch.inference_mode()
def _judged(
    network: nn.Module | None, sample: dict[str, Tensor], plans: Plans, downsampling: int, device: torch.device
) -> dict[str, float]:
    batch = {key: value[None].to(device) for key, value in sample.items()}
    if network is None:
        full = torch.zeros(1, 3, *batch["fixed"].shape[2:], device=device)
        flow = warping.downsample_image(full, downsampling)
    else:
        with autocast(device, plans.training.autocast):
            flow, full = predict_flow(network, batch["moving"], batch["fixed"], downsampling)
    found = {"folding": 100 * (warping.jacobian_determinant(flow) <= 0).float().mean().item()}
    if len(sample["labels"]):
        # Over all voxels, unlike in the loss.
        loss, _ = soft_dice(batch["moving_labels"], batch["fixed_labels"], full, batch["labels"][0])
        found["dice"] = 1 - loss.item()
    if plans.loss.similarity:
        found["similarity"] = similarity(Predicted(batch, flow, full, downsampling), plans.loss).item()
    return found
