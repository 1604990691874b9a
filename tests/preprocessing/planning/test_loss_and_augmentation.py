"""Labels and symmetry decide about the loss and mirroring."""

from __future__ import annotations

import pytest
from simulated_studies import brain, ct, names_of, seen, study


def test_without_labels_images_alone_align() -> None:
    plans = brain(None, unlabelled=names_of(brain(), 0, 1)).plans()
    assert plans.default_configuration == "half"
    assert (plans.loss.dice, plans.loss.similarity) == (0, 1)
    assert "No case is annotated" in plans.reasons["loss"]


@pytest.mark.parametrize("lacking", ["unlabelled", "partly"])
def test_with_some_labels_both_labels_and_images_align(lacking: str) -> None:
    plans = brain(**{lacking: names_of(brain(), 1)}).plans()
    assert (plans.loss.dice, plans.loss.similarity) == (1, 1)
    assert "50 %" in plans.reasons["loss"]
    # What is held out is not trained on: it may lack labels.
    held = brain(**{lacking: names_of(brain(), 1)[:1]}, held_out=names_of(brain(), 1)[:1])
    assert held.plans().loss.similarity == 0


@pytest.mark.parametrize(("overlap", "axes"), [(0.95, ("x",)), (0.6, ())])
def test_symmetric_anatomy_is_mirrored(overlap: float, axes: tuple[str, ...]) -> None:
    plans = study([seen("A_0001_0000", mirror_overlap=overlap), ct(mirror_overlap=overlap)]).plans()
    assert plans.augmentation.mirror_axes == axes
    assert f"{overlap:.2f}" in plans.reasons["augmentation.mirror_axes"]
