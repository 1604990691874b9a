"""What training minimises, as the plans say it: a weight for each term, and the terms' parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from llmreg.settings import Settings
from llmreg.similarity.image_similarity import Kind
from llmreg.similarity.registry import LOSS_TERMS, TermSettings


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
        folding: weight of the mean of what determinants of the flow's Jacobian lack to zero.
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
            if name not in LOSS_TERMS.parts:
                raise ValueError(f"there is no {LOSS_TERMS.kind} '{name}': choose {', '.join(LOSS_TERMS.names)}")
        return {name: LOSS_TERMS.get(name).settings.model_validate(content) for name, content in value.items()}

    @model_validator(mode="after")
    def _check_that_something_aligns(self) -> LossSettings:
        if not any(LOSS_TERMS.get(name).aligns_images for name in self.active_terms):
            aligning = [name for name, term in LOSS_TERMS.parts.items() if term.aligns_images]
            raise ValueError(f"{' or '.join(aligning)} must be above 0: nothing else aligns the images")
        return self

    @property
    def active_terms(self) -> dict[str, TermSettings]:
        """The parameters of the terms whose weight is above 0, in the order in which they are added up."""
        settings = {name: self.terms.get(name) or self._from_keys(name) for name in LOSS_TERMS.names}
        return {name: term for name, term in settings.items() if term is not None and term.weight}

    def _from_keys(self, name: str) -> TermSettings | None:
        """The parameters of a term that has keys of its own here, None for another."""
        if name not in type(self).model_fields:
            return None
        keys = {key.removeprefix(f"{name}_"): key for key in type(self).model_fields if key.startswith(f"{name}_")}
        parameters = {parameter: getattr(self, key) for parameter, key in keys.items()}
        return LOSS_TERMS.get(name).settings(weight=getattr(self, name), **parameters)

    @property
    def uses_unlabelled_pairs(self) -> bool:
        """Whether a pair without annotated structures can be aligned by some term."""
        terms = [LOSS_TERMS.get(name) for name in self.active_terms]
        return any(term.aligns_images and not term.needs_labels for term in terms)

    @property
    def memory_gb(self) -> float:
        """Memory that the terms take in training, in GiB for each million voxels of the network's grid."""
        return sum(LOSS_TERMS.get(name).memory_gb for name in self.active_terms)

    def __str__(self) -> str:
        """The weighted sum, as ``1 x dice + 0.5 x mind``."""
        labels = {name: LOSS_TERMS.get(name).label for name in self.active_terms}
        return " + ".join(
            f"{settings.weight:g} x {label(settings) if (label := labels[name]) else name}"
            for name, settings in self.active_terms.items()
        )
