from __future__ import annotations

import pytest
import torch
from loss_batches import make_batch, random_flow, swap_roles
from torch import Tensor

from llmreg.geometry import warping
from llmreg.similarity.image_similarity import similarity_loss
from llmreg.similarity.loss_settings import LossSettings
from llmreg.similarity.masks import comparable_voxels
from llmreg.similarity.registry import Prediction
from llmreg.similarity.regularity import bending_energy, gradient_l2
from llmreg.training.objective import compute_terms, measure_image_match, sum_terms

BOTH = LossSettings(similarity=0.5, smoothness=2)


def predict(batch: dict[str, Tensor], flow: Tensor) -> Prediction:
    return Prediction(batch, flow, flow)


def image_term(batch: dict[str, Tensor], flow: Tensor) -> float:
    """The image term by hand, on a grid that is both the images' and the network's."""
    mask = comparable_voxels(batch["moving_seen"], batch["fixed_seen"], flow)[:, None]
    return float(similarity_loss("mind", warping.warp(batch["moving"], flow), batch["fixed"], mask))


def test_terms_of_weight_0_are_left_out() -> None:
    prediction = predict(make_batch(), random_flow())
    assert list(compute_terms(prediction, BOTH)) == ["dice", "similarity", "smoothness"]
    terms = compute_terms(prediction, LossSettings(dice=0, similarity=1, smoothness=0, bending=1))
    assert list(terms) == ["similarity", "bending"]
    assert terms["bending"] == bending_energy(prediction.flow)


def test_the_sum_is_weighted() -> None:
    flow = random_flow()
    terms = compute_terms(predict(make_batch(), flow), BOTH)
    assert terms["smoothness"] == gradient_l2(flow)
    expected = terms["dice"] + 0.5 * terms["similarity"] + 2 * terms["smoothness"]
    assert sum_terms(terms, BOTH) == pytest.approx(float(expected), rel=1e-6)
    assert sum_terms({"smoothness": torch.tensor(3.0)}, LossSettings(smoothness=0.5)) == 1.5


def test_a_batch_without_labels_has_no_dice() -> None:
    flow = random_flow().requires_grad_()
    prediction = predict(make_batch(labels=()), flow)
    terms = compute_terms(prediction, BOTH)
    assert set(terms) == {"similarity", "smoothness"}
    sum_terms(terms, BOTH).backward()
    assert flow.grad is not None
    assert flow.grad.any()
    # Without an image term smoothness is left.
    assert sum_terms(compute_terms(prediction, LossSettings()), LossSettings()) == gradient_l2(flow)


def test_images_match_as_the_image_term_says() -> None:
    batch, flow = make_batch(), random_flow()
    expected = image_term(batch, flow)
    # The weight has no influence, and no rounding.
    for weight in (0.3, 1.0):
        assert measure_image_match(predict(batch, flow), LossSettings(similarity=weight)) == expected
    assert measure_image_match(predict(batch, flow), LossSettings()) is None
    swapped = measure_image_match(predict(swap_roles(batch), flow), BOTH)
    assert swapped == image_term(swap_roles(batch), flow)
    assert swapped != expected
