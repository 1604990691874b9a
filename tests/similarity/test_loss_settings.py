from __future__ import annotations

import pytest
from pydantic import ValidationError

from llmreg.similarity.loss_settings import LossSettings
from llmreg.similarity.registry import TermSettings
from llmreg.similarity.terms import SimilaritySettings


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
    with pytest.raises(ValidationError) as caught:
        LossSettings.model_validate(content)
    assert caught.value.errors()[0]["loc"] == key
