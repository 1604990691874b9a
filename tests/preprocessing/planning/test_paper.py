"""The plans with the paper's settings."""

from __future__ import annotations

from simulated_studies import brain, ct, seen, study

from llmreg.geometry.grid import Grid
from llmreg.preprocessing.planning.paper import paper_plans


def test_the_papers_settings_are_those_of_the_paper() -> None:
    paper = paper_plans(brain().plans())
    assert (paper.plans_name, paper.prealignment.method) == ("paper", "identity")
    assert (brain().plans().network.cost_volume, paper.network.cost_volume) == (1, 0)
    assert (paper.loss.dice, paper.loss.similarity, paper.loss.smoothness) == (1, 0, 0.1)
    assert (paper.training.learning_rate, paper.training.schedule) == (1e-4, "constant")
    assert (paper.training.epochs, paper.training.steps_per_epoch) == (50, 1620)
    assert (paper.normalization[1].lower, paper.normalization[1].upper) == (-180, 400)
    assert paper.augmentation.mirror_axes == ()
    assert paper.reasons["paper"]
    apart = study([seen("A_0001_0000", Grid((90, 90, 90), (1, 1, 1), (5, 5, 5))), ct()])
    assert paper_plans(apart.plans()).prealignment.method == "centre"
    unit = study([seen(range=[0.0, 1.0]), ct(range=[0.0, 1.0])])
    assert paper_plans(unit.plans()).normalization[1].upper == 1
