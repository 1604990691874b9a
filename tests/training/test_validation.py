from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_fold import ALONE, VALIDATION_PAIRS, make_fold, make_plans
from torch import Tensor, nn

from llmreg.data.dataset import Pair
from llmreg.geometry import warping
from llmreg.networks.registration_network import GridNetwork
from llmreg.preprocessing.preprocessed_volumes import read_volume
from llmreg.similarity.image_similarity import similarity_loss
from llmreg.training.distributed import DistributedContext
from llmreg.training.validation import Validation, Validator


class Contrast(nn.Module):
    """A stand-in for a network: it shifts along x by the difference of the images' means, so that a swap shows."""

    predicts_velocity = False
    shape = (16, 16, 16)

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        flow = moving.new_zeros(len(moving), 3, *moving.shape[2:])
        flow[:, 0] = 2 + 20 * (moving.mean() - fixed.mean())
        return flow


NETWORK = GridNetwork(Contrast(), 1)  # type: ignore[arg-type]


def make_validator(
    folder: Path, context: DistributedContext = ALONE, unlabelled: str = "", **settings: object
) -> Validator:
    loss = settings.pop("loss", {})
    plans = make_plans(settings, loss=loss)
    fold = make_fold(folder, unlabelled)
    return Validator(fold, plans.configuration("full"), plans.loss, plans.training, context)


def read_pair(folder: Path, pair: Pair, suffix: str) -> tuple[Tensor, Tensor]:
    """The moving and the fixed volume, padded along z like the network's input."""
    volumes = [read_volume(folder / "volumes" / f"{case}{suffix}.b2nd") for case in (pair.moving, pair.fixed)]
    moving, fixed = (torch.from_numpy(np.pad(volume, ((1, 1), (0, 0), (0, 0))))[None] for volume in volumes)
    return moving, fixed


def dice_by_hand(folder: Path, pair: Pair, shift: float) -> float:
    """Soft Dice over the two structures of one-hot volumes that are looked up at a shift along x."""
    moving, fixed = read_pair(folder, pair, "_seg")
    flow = torch.zeros(1, 3, 16, 16, 16)
    flow[:, 0] = shift
    scores = []
    for label in (1, 2):
        warped = warping.warp((moving == label).float()[None], flow)[0]
        target = (fixed == label).float()
        scores.append(2 * (warped * target).sum() / (warped.sum() + target.sum()))
    return float(torch.stack(scores).mean())


def shift_of(folder: Path, pair: Pair) -> float:
    moving, fixed = read_pair(folder, pair, "")
    return float(2 + 20 * (moving.mean() - fixed.mean()))


def test_scores_are_those_of_the_warped_moving_volumes(tmp_path: Path) -> None:
    (pair,) = VALIDATION_PAIRS
    validator = make_validator(tmp_path, loss={"similarity": 1})
    validation, initial = validator.validate(NETWORK), validator.validate(NETWORK, unmoved=True)
    shift = shift_of(tmp_path, pair)
    assert abs(shift - 2) > 0.1
    assert validation.dice == pytest.approx(dice_by_hand(tmp_path, pair, shift), abs=1e-5)
    assert initial.dice == pytest.approx(dice_by_hand(tmp_path, pair, 0.0), abs=1e-5)
    assert validation.dice != pytest.approx(dice_by_hand(tmp_path, Pair(pair.moving, pair.fixed), shift), abs=1e-3)
    moving, fixed = read_pair(tmp_path, pair, "")
    _, seen_mask = read_pair(tmp_path, pair, "_seen")
    assert initial.similarity == pytest.approx(
        float(similarity_loss("mind", moving[None], fixed[None], seen_mask[None] > 0)), rel=1e-5
    )
    assert (validation.folding, initial.folding) == (0.0, 0.0)


def test_both_directions_are_evaluated_where_both_are_trained(tmp_path: Path) -> None:
    (pair,) = VALIDATION_PAIRS
    reversed_pair = Pair(pair.moving, pair.fixed)
    dice = make_validator(tmp_path, bidirectional=True).validate(NETWORK).dice
    expected = [dice_by_hand(tmp_path, direction, shift_of(tmp_path, direction)) for direction in (pair, reversed_pair)]
    assert dice == pytest.approx(sum(expected) / 2, abs=1e-5)


def test_processes_share_the_pairs(tmp_path: Path) -> None:
    class Gathering(DistributedContext):
        """Gathers what this process has, as if the others had nothing."""

        def gather(self, item: list[dict[str, float]]) -> list[list[dict[str, float]]]:  # type: ignore[override]
            return [item]

    shares = [
        make_validator(tmp_path, Gathering(rank, 2, torch.device("cpu")), bidirectional=True).validate(NETWORK).dice
        for rank in range(2)
    ]
    dice = make_validator(tmp_path, bidirectional=True).validate(NETWORK).dice
    assert None not in shares
    assert dice == pytest.approx(np.mean(shares), abs=1e-6)
    assert shares[0] != shares[1]


def test_pairs_that_nothing_judges_are_left_out(tmp_path: Path) -> None:
    validation = make_validator(tmp_path, unlabelled="a").validate(NETWORK)
    assert validation == Validation(None, None, None)
    assert validation.score is None
    image_validation = make_validator(tmp_path, loss={"similarity": 1}).validate(NETWORK)
    assert image_validation.dice is None
    assert image_validation.similarity is not None
    assert image_validation.score == -image_validation.similarity


def test_dice_is_the_score_where_it_is_known() -> None:
    assert Validation(0.7, 0.2, 0.0).score == 0.7
    assert "0.7000" in str(Validation(0.7, 0.2, 0.0))
    assert "0.2000" in str(Validation(None, 0.2, 0.0))
