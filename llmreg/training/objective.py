"""What training minimises: the weighted sum of the registered terms that the plans ask for."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from llmreg.similarity.loss_settings import LossSettings
from llmreg.similarity.registry import LOSS_TERMS, Prediction


def compute_terms(prediction: Prediction, loss: LossSettings) -> dict[str, Tensor]:
    """Return the terms of weight above 0 by name, each a scalar; those that need labels only where a pair has some."""
    terms = {name: (LOSS_TERMS.get(name), settings) for name, settings in loss.active_terms.items()}
    return {
        name: term.compute(prediction, settings)
        for name, (term, settings) in terms.items()
        if prediction.has_labels or not term.needs_labels
    }


def sum_terms(terms: Mapping[str, Tensor], loss: LossSettings) -> Tensor:
    """Return the weighted sum of what :func:`compute_terms` gives. Raises RuntimeError when there is no term."""
    weights = loss.active_terms
    return torch.stack([weights[name].weight * term for name, term in terms.items()]).sum()


@torch.no_grad()
def measure_image_match(prediction: Prediction, loss: LossSettings) -> float | None:
    """Return the mean of the active terms that align images without labels, weighted like the loss; lower is better.

    None where the loss has no such term.
    """
    terms = {name: LOSS_TERMS.get(name) for name in loss.active_terms}
    settings = {
        name: loss.active_terms[name] for name, term in terms.items() if term.aligns_images and not term.needs_labels
    }
    total = sum(term.weight for term in settings.values())
    values = {name: terms[name].compute(prediction, term).item() for name, term in settings.items()}
    # The value of a single term is not rounded, because its share is exactly 1.
    return sum(values[name] * (term.weight / total) for name, term in settings.items()) if settings else None
