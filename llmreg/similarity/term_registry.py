"""The registry of loss terms: what training can minimise, each term with its own parameters.

A term registers itself when its module is imported::

    LOSS_TERMS.register("rigidity", LossTerm("how far the flow is from a rotation", RigiditySettings, compute_rigidity))

Another package names that module in the entry point group ``llmreg.loss_terms``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import Field
from torch import Tensor

from llmreg.geometry import warping
from llmreg.registry import Registry
from llmreg.settings import Settings
from llmreg.similarity.masks import comparable_voxels, shrink_mask


class TermSettings(Settings):
    """The parameters of a term; a term with more of them than its weight derives from this class.

    Attributes:
        weight: factor of the term in the sum that is minimised; a term of weight 0 is not computed.
    """

    weight: float = Field(default=0.0, ge=0)


@dataclass(frozen=True, eq=False)
class LossInputs:
    """A batch of pairs and the flow that a network predicted for it: what a term may look at.

    The images' grid may be finer than the network's by a whole factor. Similarity and regularity are computed on the
    network's grid: that is what the network saw, and a fraction of the voxels.

    Attributes:
        batch: ``moving`` and ``fixed`` (B, 1, z, y, x), intensities about [0, 1]; ``moving_labels`` and
            ``fixed_labels`` (B, z, y, x), integer ids; ``moving_seen`` and ``fixed_seen`` (B, z, y, x), 1 in the
            image's field of view; ``labels``, the ids that are annotated in both images. All on the images' grid.
        flow: displacement from fixed to moving on the network's grid, (B, 3, z, y, x), channels (x, y, z), in voxels
            of that grid.
        full_flow: the same on the images' grid, in its voxels.
    """

    batch: Mapping[str, Tensor]
    flow: Tensor
    full_flow: Tensor

    @property
    def moving(self) -> Tensor:
        """The moving image on the network's grid."""
        return warping.downsample_image(self.batch["moving"], self._factor)

    @property
    def fixed(self) -> Tensor:
        """The fixed image on the network's grid."""
        return warping.downsample_image(self.batch["fixed"], self._factor)

    @cached_property
    def comparable(self) -> Tensor:
        """The voxels of the network's grid at which the images can be compared, bool (B, z, y, x)."""
        moving_seen, fixed_seen = (
            shrink_mask(self.batch[f"{role}_seen"], self._factor) for role in ("moving", "fixed")
        )
        return comparable_voxels(moving_seen, fixed_seen, self.flow)

    @cached_property
    def comparable_full(self) -> Tensor:
        """The voxels of the images' grid at which the images can be compared, bool (B, z, y, x)."""
        return comparable_voxels(self.batch["moving_seen"], self.batch["fixed_seen"], self.full_flow)

    @property
    def _factor(self) -> int:
        return self.full_flow.shape[-1] // self.flow.shape[-1]


@dataclass(frozen=True)
class LossTerm:
    """A term of the loss.

    Attributes:
        documentation: what it measures, a line.
        settings: the class of its parameters.
        compute: a scalar, lower is better, of a prediction and the parameters; differentiable in the flows.
        aligns_images: whether minimising it makes images match. A loss needs at least one such term.
        needs_labels: whether it is left out for pairs without a structure that is annotated in both images.
        memory_gb: memory that it takes in training, in GiB for each million voxels of the network's grid, where that
            matters to what fits.
    """

    documentation: str
    settings: type[TermSettings]
    compute: Callable[[LossInputs, Any], Tensor]
    aligns_images: bool = False
    needs_labels: bool = False
    memory_gb: float = 0.0


LOSS_TERMS: Registry[LossTerm] = Registry("loss term", "llmreg.loss_terms", ("llmreg.similarity.terms",))
