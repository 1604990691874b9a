"""Evaluation of some validation pairs after each epoch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from llmreg.data.dataset import Pair
from llmreg.devices import autocast
from llmreg.geometry import warping
from llmreg.networks.registration_network import GridNetwork
from llmreg.plans.plan_settings import Configuration, Training
from llmreg.similarity.loss_settings import LossSettings, measure_image_match
from llmreg.similarity.soft_dice import soft_dice
from llmreg.similarity.term_registry import LossInputs
from llmreg.training.distributed import DistributedContext
from llmreg.training.options import FoldData
from llmreg.training.samples import common_labels, load_case, to_tensors


@dataclass(frozen=True)
class Validation:
    """Means over validation pairs; None where no pair has the value.

    Attributes:
        dice: soft Dice over all voxels.
        similarity: how unlike the images are, see :func:`llmreg.similarity.loss_settings.measure_image_match`.
        folding: percentage of the network's voxels whose Jacobian determinant is not above zero.
    """

    dice: float | None
    similarity: float | None
    folding: float | None

    @property
    def score(self) -> float | None:
        """Dice, or without labels minus the image term; higher is better."""
        return self.dice if self.dice is not None or self.similarity is None else -self.similarity

    def __str__(self) -> str:
        if self.dice is None and self.similarity is not None:
            return f"similarity loss {self.similarity:.4f}"
        return f"Dice {'-' if self.dice is None else format(self.dice, '.4f')}"


class Validator:
    """Evaluates a network on validation pairs, which the processes that train together divide among themselves.

    The pairs are spread over the fold's validation pairs, as many as the settings say; those that no label and no image
    term can judge are left out. When both directions are trained, each pair is also evaluated with its roles exchanged.

    Args:
        fold: its validation pairs and volumes.
        configuration: the shape that volumes are padded to.
        loss: the image terms to evaluate.
        settings: number of pairs, precision, and whether both directions are trained.
        context: this process among those that train together.
    """

    def __init__(
        self,
        fold: FoldData,
        configuration: Configuration,
        loss: LossSettings,
        settings: Training,
        context: DistributedContext,
    ) -> None:
        self._loss, self._settings, self._context = loss, settings, context
        spread = fold.validation_pairs[:: max(1, len(fold.validation_pairs) // settings.validation_pairs)]
        labels = common_labels(fold.volumes, spread[: settings.validation_pairs])
        if settings.bidirectional:
            labels |= {Pair(pair.moving, pair.fixed): ids for pair, ids in labels.items()}
        judgeable = [(pair, ids) for pair, ids in labels.items() if ids or loss.uses_unlabelled_pairs]
        self._samples = [
            to_tensors(
                load_case(fold.volumes, pair.fixed, configuration),
                load_case(fold.volumes, pair.moving, configuration),
                ids,
            )
            for pair, ids in judgeable[context.rank :: context.world]
        ]

    def validate(self, network: GridNetwork, *, unmoved: bool = False) -> Validation:
        """Measure how well the network aligns the pairs of all processes; every process must call this.

        Args:
            network: the network.
            unmoved: measure the alignment without the network instead, with a flow of zero.
        """
        network.eval()
        shares = self._context.gather([self._score(network, sample, unmoved=unmoved) for sample in self._samples])
        rows = [row for share in shares for row in share]
        values_of = {
            key: [value for row in rows if (value := row.get(key)) is not None]
            for key in ("dice", "similarity", "folding")
        }
        return Validation(**{key: sum(values) / len(values) if values else None for key, values in values_of.items()})

    @torch.inference_mode()
    def _score(self, network: GridNetwork, sample: dict[str, Tensor], *, unmoved: bool) -> dict[str, float | None]:
        batch = {key: value[None].to(self._context.device) for key, value in sample.items()}
        with autocast(self._context.device, self._settings.autocast):
            flow, full_flow = (
                network.zero_flows(batch["fixed"]) if unmoved else network(batch["moving"], batch["fixed"])
            )
        scores = {
            "folding": 100 * (warping.jacobian_determinant(flow) <= 0).float().mean().item(),
            "similarity": measure_image_match(LossInputs(batch, flow, full_flow), self._loss),
        }
        if len(sample["labels"]):
            # Dice covers all voxels here, unlike in the loss.
            loss, _ = soft_dice(batch["moving_labels"], batch["fixed_labels"], full_flow, batch["labels"][0])
            scores["dice"] = 1 - loss.item()
        return scores
