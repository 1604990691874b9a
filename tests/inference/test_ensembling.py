"""Folds of a model in one network, and the merging of LoRA when a model is loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tiny_model_folder import PADDED, make_network, make_plans, write_model

from llmreg.inference.ensembling import Ensemble, deviation
from llmreg.inference.models import load_model

SHAPE = PADDED[::-1]


def random_pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 1, *SHAPE, generator=generator), torch.rand(1, 1, *SHAPE, generator=generator)


def test_each_fold_predicts_with_its_own_weights_time_and_again(tmp_path: Path) -> None:
    plans = make_plans()
    ensemble = Ensemble(load_model(write_model(tmp_path, plans, ("0", "1"))), plans, torch.device("cpu"))
    moving, fixed = random_pair()
    with torch.inference_mode():
        expected = [make_network(plans, seed).raw(moving, fixed) for seed in (0, 1)]
    assert not torch.allclose(expected[0], expected[1], atol=0.1)
    for _ in range(2):
        for flow, other in zip(ensemble.flows(moving, fixed), expected, strict=True):
            torch.testing.assert_close(flow, other, atol=1e-5, rtol=1e-4)
    assert not ensemble.velocity


def test_the_images_keep_their_roles(tmp_path: Path) -> None:
    plans = make_plans()
    ensemble = Ensemble(load_model(write_model(tmp_path, plans)), plans, torch.device("cpu"))
    moving, fixed = random_pair()
    (flow,), (swapped,) = (list(ensemble.flows(*pair)) for pair in ((moving, fixed), (fixed, moving)))
    assert not torch.allclose(flow, swapped, atol=0.1)


def test_the_deviation_is_measured_after_the_transform() -> None:
    rng = np.random.default_rng(0)
    flows = [rng.normal(size=(3, 4, 5, 3)).astype(np.float32) for _ in range(3)]
    matrix = np.array([[2.0, 0.3, 0.0], [0.0, 1.0, 0.0], [0.0, 0.5, 0.5]])
    mapped = np.einsum("ij,fzyxj->fzyxi", matrix, np.stack(flows))
    expected = np.sqrt(mapped.var(axis=0, ddof=1).sum(axis=-1))
    np.testing.assert_allclose(deviation(flows, matrix), expected, rtol=1e-5)
