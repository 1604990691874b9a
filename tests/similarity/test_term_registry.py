"""Loss terms of other packages."""

from __future__ import annotations

import textwrap
from pathlib import Path

import torch
from loss_batches import SHAPE, make_batch, random_flow
from outside_packages import run_python, write_package

from llmreg.geometry import warping
from llmreg.similarity.term_registry import LossInputs

MODULE = """
    from pydantic import Field

    from llmreg.similarity.term_registry import LOSS_TERMS, LossTerm, TermSettings


    class DistanceSettings(TermSettings):
        power: float = Field(default=2.0, gt=0)


    def compute_distance(prediction, settings):
        from llmreg.geometry import warping

        difference = warping.warp(prediction.moving, prediction.flow) - prediction.fixed
        return difference.abs().pow(settings.power).mean()


    LOSS_TERMS.register(
        "distance", LossTerm("mean distance of intensities", DistanceSettings, compute_distance, aligns_images=True)
    )
"""
PROGRAM = """
    import torch
    from loss_batches import make_batch, random_flow

    from llmreg.similarity.loss_settings import LossSettings
    from llmreg.similarity.term_registry import LOSS_TERMS, LossInputs
    from llmreg.similarity.loss_settings import compute_terms, measure_image_match, sum_terms

    loss = LossSettings.model_validate(
        {"dice": 0, "smoothness": 0, "terms": {"distance": {"weight": 3.0, "power": 1.0}}}
    )
    assert LossSettings.model_validate(loss.model_dump(mode="json")) == loss
    try:
        LossSettings.model_validate({"terms": {"distance": {"weight": 1.0, "power": -1}}})
    except ValueError as error:
        assert "distance: power" in str(error), error
    else:
        raise AssertionError("a wrong parameter was accepted")
    assert str(loss) == "3 x distance"
    assert loss.uses_unlabelled_pairs
    flow = random_flow()
    terms = compute_terms(LossInputs(make_batch(), flow, flow), loss)
    both = LossSettings.model_validate({"similarity": 1.0, "terms": loss.model_dump()["terms"]})
    prediction = LossInputs(make_batch(), flow, flow)
    values = compute_terms(prediction, both)
    weighted_mean = (values["similarity"] + 3 * values["distance"]) / 4
    torch.testing.assert_close(measure_image_match(prediction, both), weighted_mean.item())
    print(*LOSS_TERMS.names, *terms, terms["distance"].item(), sum_terms(terms, loss).item())
"""


def test_a_term_of_another_package_is_found_and_trained_with(tmp_path: Path) -> None:
    write_package(tmp_path, "toy_terms", textwrap.dedent(MODULE), "llmreg.loss_terms")
    path = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
    printed = run_python(tmp_path, path + textwrap.dedent(PROGRAM))
    *names, value, weighted = printed.split()
    assert names == ["dice", "similarity", "smoothness", "bending", "folding", "distance", "distance"]
    batch, flow = make_batch(), random_flow()
    expected = (warping.warp(batch["moving"], flow) - batch["fixed"]).abs().mean()
    torch.testing.assert_close(float(value), float(expected))
    torch.testing.assert_close(float(weighted), 3 * float(expected))


def test_a_prediction_shows_images_on_the_networks_grid() -> None:
    batch, full_flow = make_batch(), random_flow()
    for factor in (1, 2):
        prediction = LossInputs(batch, random_flow([n // factor for n in SHAPE]), full_flow)
        for role, image in (("moving", prediction.moving), ("fixed", prediction.fixed)):
            blocks = torch.nn.functional.avg_pool3d(batch[role], factor)
            torch.testing.assert_close(image, blocks)
        assert prediction.comparable.shape == (1, *(n // factor for n in SHAPE))
        assert prediction.comparable_full.shape == (1, *SHAPE)
