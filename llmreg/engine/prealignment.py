"""Pre-alignment: where a case lies in the common frame, estimated from its image.

The case transform maps points of the frame to points of the case (pull-back), so that the case in the frame is
``resample_image(case, frame, transform)``. Methods register themselves in :data:`PREALIGNMENTS`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Self

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from pydantic import AfterValidator

from llmreg.errors import UserError
from llmreg.geometry.field import chain_transforms
from llmreg.geometry.grid import Grid
from llmreg.registry import Registry
from llmreg.settings import Settings


@dataclass(frozen=True, eq=False)
class CaseTransform:
    """Frame point -> case point, x -> matrix x + translation (mm, LPS), with the stage that found it.

    Attributes:
        matrix: (3, 3).
        translation: (3,).
        stage: identity, centre, search, rigid, affine, template, or given by the user.
        score: Mattes mutual information with the reference, or correlation with the template (higher is better); None
            when not compared.
        uncertainty_mm: the distance along the body to other shifts that are about as good; None without a search.
    """

    matrix: NDArray[np.float64]
    translation: NDArray[np.float64]
    stage: str
    score: float | None = None
    uncertainty_mm: float | None = None

    @classmethod
    def from_sitk(cls, transform: sitk.Transform, stage: str) -> Self:
        """Make a case transform from a linear one of SimpleITK."""
        origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
        columns = [np.array(transform.TransformPoint(tuple(axis))) - origin for axis in np.eye(3)]
        return cls(np.stack(columns, axis=1), origin, stage)

    def to_sitk(self) -> sitk.AffineTransform:
        """The same as a transform of SimpleITK."""
        return sitk.AffineTransform(self.matrix.ravel().tolist(), self.translation.tolist())

    def to_dict(self) -> dict[str, Any]:
        """The transform as JSON."""
        return {
            "matrix": self.matrix.tolist(),
            "translation": self.translation.tolist(),
            "stage": self.stage,
            "score": self.score,
            "uncertainty_mm": self.uncertainty_mm,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """Make a case transform from :meth:`to_dict`."""
        return cls(**content | {key: np.array(content[key]) for key in ("matrix", "translation")})


# The transform of a case that lies in the frame as it is.
IDENTITY = CaseTransform(np.eye(3), np.zeros(3), "identity")


@dataclass(frozen=True, eq=False)
class Template:
    """A modality's mean image in the common frame (see :mod:`llmreg.engine.templates`).

    Attributes:
        image: float32.
        seen: (z, y, x), the voxels that lie in the field of view of some training case.
        centre: mean of the middles of the cases' foregrounds, mm LPS in the frame.
        spread: their standard deviation along each axis, mm.
    """

    image: sitk.Image
    seen: NDArray[np.bool_]
    centre: NDArray[np.float64]
    spread: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CaseToPlace:
    """What a pre-alignment method may look at.

    Attributes:
        image: the normalised case, float32, its axes turned to the frame's as near as they can be.
        centre: the middle of its foreground, mm LPS.
        frame: the common frame.
        reference: the normalised reference case in the frame; None for the reference case itself.
        template: of the case's modality, where one was learned.
    """

    image: sitk.Image
    centre: NDArray[np.float64]
    frame: Grid
    reference: sitk.Image | None = None
    template: Template | None = None


@dataclass(frozen=True)
class PreAlignmentMethod:
    """A way to place cases in the common frame.

    Attributes:
        summary: a line for the documentation.
        stages: yields transforms of a case, each at least as good as the one before; the last one is used.
        uses_templates: whether templates have to be learned from the training cases first.
    """

    summary: str
    stages: Callable[[CaseToPlace], Iterator[CaseTransform]]
    uses_templates: bool = False


PREALIGNMENTS: Registry[PreAlignmentMethod] = Registry(
    "pre-alignment", "llmreg.prealignments", ("llmreg.engine.rigid_alignment", "llmreg.engine.templates")
)


def _check_method(name: str) -> str:
    PREALIGNMENTS.get(name)
    return name


class PreAlignment(Settings):
    """How a case finds its place in the common frame.

    Attributes:
        method: the name of a registered method.
        reference_case: the case to which others are aligned.
        aligned_grid: a case whose grid equals it lies in the frame already and is not moved.
    """

    method: Annotated[str, AfterValidator(_check_method)]
    reference_case: str
    aligned_grid: dict[str, list[float]] | None = None

    @property
    def uses_templates(self) -> bool:
        """Whether the method needs templates that are learned from the training cases."""
        return PREALIGNMENTS.get(self.method).uses_templates


def align_case(case: CaseToPlace, settings: PreAlignment) -> CaseTransform:
    """Estimate the transform of a case: the last stage of the method, or none for a case that is aligned already.

    Raises:
        UserError: the method yields no transform.
    """
    if settings.aligned_grid and Grid.from_dict(settings.aligned_grid).same_as(Grid.from_image(case.image)):
        return IDENTITY
    stages = list(PREALIGNMENTS.get(settings.method).stages(case))
    if not stages:
        raise UserError(f"The pre-alignment '{settings.method}' finds no transform of a case: choose another method.")
    return stages[-1]


def pair_prealignment(fixed: CaseTransform, moving: CaseTransform) -> sitk.Transform:
    """The pre-alignment of a pair, fixed points -> moving points, from the transforms of its cases."""
    affine = chain_transforms(fixed.to_sitk().GetInverse(), moving.to_sitk())
    return CaseTransform.from_sitk(affine, "prealignment").to_sitk()


def centre_transform(case: CaseToPlace) -> CaseTransform:
    """The shift that brings the middle of the case's foreground to the frame's middle."""
    return CaseTransform(np.eye(3), case.centre - case.frame.centre, "centre")


PREALIGNMENTS.register(
    "identity", PreAlignmentMethod("cases stay where they lie in space", lambda case: iter([IDENTITY]))
)
PREALIGNMENTS.register(
    "centre",
    PreAlignmentMethod(
        "the middle of the foreground is brought to the frame's middle", lambda case: iter([centre_transform(case)])
    ),
)
