from __future__ import annotations

import pytest
import torch
from loss_batches import make_batch, random_flow, swap_roles
from pydantic import ValidationError
from torch import Tensor

from llmreg.geometry import warping
from llmreg.similarity.image_similarity import similarity_loss
from llmreg.similarity.loss_settings import LossSettings, compute_terms, measure_image_match, sum_terms
from llmreg.similarity.masks import comparable_voxels
from llmreg.similarity.term_registry import LossInputs, TermSettings
from llmreg.similarity.terms import SimilaritySettings, bending_energy, gradient_l2


def test_terms_of_weight_0_are_left_out_and_the_order_is_fixed() -> None:
    assert LossSettings().active_terms == {"dice": TermSettings(weight=1), "smoothness": TermSettings(weight=1)}
    every = LossSettings(folding=4, bending=3, smoothness=2, similarity=0.5, similarity_kind="lncc")
    assert list(every.active_terms) == ["dice", "similarity", "smoothness", "bending", "folding"]
    assert every.active_terms["similarity"] == SimilaritySettings(weight=0.5, kind="lncc")
    assert str(every) == "1 x dice + 0.5 x lncc + 2 x smoothness + 3 x bending + 4 x folding"


def test_only_image_terms_can_use_pairs_without_labels_and_take_memory() -> None:
    dice, image = LossSettings(bending=1), LossSettings(dice=0, similarity=1)
    assert (dice.uses_unlabelled_pairs, image.uses_unlabelled_pairs) == (False, True)
    assert (dice.memory_gb, image.memory_gb) == (0, 0.3)


def test_keys_that_are_not_set_are_left_out_of_digests() -> None:
    assert LossSettings(smoothness=0.1).model_dump(mode="json", exclude_defaults=True) == {"smoothness": 0.1}
    assert LossSettings(terms={}).model_dump(mode="json", exclude_defaults=True) == {}


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"dice": 0}, ()),
        ({"dice": -1}, ("dice",)),
        ({"similarity_kind": "ssd"}, ("similarity_kind",)),
        ({"terms": {"unheard_of": {"weight": 1}}}, ("terms",)),
        ({"terms": {"folding": {"weight": 1}}}, ("terms",)),
        ({"rigidity": 1}, ("rigidity",)),
    ],
)
def test_settings_that_cannot_be_used_are_refused(content: dict[str, object], key: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as refusal:
        LossSettings.model_validate(content)
    assert refusal.value.errors()[0]["loc"] == key


BOTH = LossSettings(similarity=0.5, smoothness=2)


def predict(batch: dict[str, Tensor], flow: Tensor) -> LossInputs:
    return LossInputs(batch, flow, flow)


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
