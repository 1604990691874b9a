"""What training minimises: the weighted sum of the registered terms that the plans ask for, with their parameters."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from pydantic import Field, SerializeAsAny, ValidationError, field_validator, model_validator
from torch import Tensor

from llmreg.settings import Settings, first_problem
from llmreg.similarity.image_similarity import Kind
from llmreg.similarity.term_registry import LOSS_TERMS, LossInputs, TermSettings
from llmreg.similarity.terms import SimilaritySettings


class LossSettings(Settings):
    """Weights and parameters of the loss terms (:mod:`llmreg.similarity.terms`).

    A key named like a term is that term's weight, and ``<term>_<parameter>`` one of its parameters; terms that have no
    key here, such as those of other packages, are set under ``terms``.

    The paper's smoothness is 0.1. Ten times as much gave the same Dice after 1,000 steps on 24 brains (67.2 against
    67.3) and a tenth of the folding (0.19 against 1.86 %).

    Attributes:
        dice: weight of one minus soft Dice, over the structures annotated in both cases of a pair.
        similarity: weight of the image term; 0 leaves it out.
        similarity_kind: measure of the image term, see :mod:`llmreg.similarity.image_similarity`.
        smoothness: weight of the mean squared difference of neighbouring displacements, in voxels.
        bending: weight of the bending energy, the mean squared second derivatives of the displacement (MONAI's).
        folding: weight of the mean over the voxels of how far the determinant of the flow's Jacobian lies below zero.
        terms: parameters of further terms by name, for example ``{"rigidity": {"weight": 0.1}}``.
    """

    dice: float = Field(default=1.0, ge=0)
    similarity: float = Field(default=0.0, ge=0)
    similarity_kind: Kind = "mind"
    smoothness: float = Field(default=1.0, ge=0)
    bending: float = Field(default=0.0, ge=0)
    folding: float = Field(default=0.0, ge=0)
    terms: dict[str, SerializeAsAny[TermSettings]] = Field(default={})

    @field_validator("terms", mode="before")
    @classmethod
    def _parse_terms(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        for name in value:
            if name in cls.model_fields:
                raise ValueError(f"'{name}' is a key of the loss itself: give its weight as loss.{name}")
        terms = {}
        for name, content in value.items():
            try:
                terms[name] = LOSS_TERMS.get(name).settings.model_validate(content)
            except ValidationError as error:
                raise ValueError(f"{name}: {first_problem(error)}") from error
        return terms

    @model_validator(mode="after")
    def _check_that_something_aligns(self) -> Self:
        if not any(LOSS_TERMS.get(name).aligns_images for name in self.active_terms):
            aligning = [name for name, term in LOSS_TERMS.parts.items() if term.aligns_images]
            raise ValueError(f"{' or '.join(aligning)} must be above 0: nothing else aligns the images")
        return self

    @property
    def active_terms(self) -> dict[str, TermSettings]:
        """The parameters of the terms whose weight is above 0, in the order in which they are added up."""
        terms = self.terms | {
            "dice": TermSettings(weight=self.dice),
            "similarity": SimilaritySettings(weight=self.similarity, kind=self.similarity_kind),
            "smoothness": TermSettings(weight=self.smoothness),
            "bending": TermSettings(weight=self.bending),
            "folding": TermSettings(weight=self.folding),
        }
        return {name: terms[name] for name in LOSS_TERMS.names if name in terms and terms[name].weight}

    @property
    def image_terms(self) -> dict[str, TermSettings]:
        """The active terms that align images without labels."""
        return {
            name: settings
            for name, settings in self.active_terms.items()
            if LOSS_TERMS.get(name).aligns_images and not LOSS_TERMS.get(name).needs_labels
        }

    @property
    def uses_unlabelled_pairs(self) -> bool:
        """Whether a pair without annotated structures can be aligned by some term."""
        return bool(self.image_terms)

    @property
    def memory_gb(self) -> float:
        """Memory that the terms take in training, in GiB for each million voxels of the network's grid."""
        return sum(LOSS_TERMS.get(name).memory_gb for name in self.active_terms)

    def __str__(self) -> str:
        """The weighted sum, as ``1 x dice + 0.5 x mind``; a term that has kinds is called by its kind."""
        return " + ".join(
            f"{settings.weight:g} x {getattr(settings, 'kind', name)}" for name, settings in self.active_terms.items()
        )


def compute_terms(prediction: LossInputs, loss: LossSettings) -> dict[str, Tensor]:
    """Return the terms of weight above 0 by name, each a scalar; those that need labels only where a pair has some."""
    return {
        name: LOSS_TERMS.get(name).compute(prediction, settings)
        for name, settings in loss.active_terms.items()
        if prediction.batch["labels"].numel() or not LOSS_TERMS.get(name).needs_labels
    }


def sum_terms(terms: Mapping[str, Tensor], loss: LossSettings) -> Tensor:
    """Return the weighted sum of what :func:`compute_terms` gives. Raises RuntimeError when there is no term."""
    weights = loss.active_terms
    return torch.stack([weights[name].weight * term for name, term in terms.items()]).sum()


@torch.no_grad()
def measure_image_match(prediction: LossInputs, loss: LossSettings) -> float | None:
    """Return the mean of the loss's image terms, weighted like the loss; lower is better. None where it has none."""
    terms = loss.image_terms
    total = sum(settings.weight for settings in terms.values())
    # The value of a single term is not rounded, because its share is exactly 1.
    shares = [
        LOSS_TERMS.get(name).compute(prediction, settings).item() * (settings.weight / total)
        for name, settings in terms.items()
    ]
    return sum(shares) if shares else None
