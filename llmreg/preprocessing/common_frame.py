"""Bringing an image into the dataset's common frame: the same code for preprocessing and prediction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from llmreg.engine.prealignment import CaseToPlace, CaseTransform, Template, align_case
from llmreg.errors import BadImage, UnreadableFile
from llmreg.geometry.arrays import image_to_array
from llmreg.geometry.grid import Grid
from llmreg.geometry.resampling import ones_on, resample_image
from llmreg.images.formats import DEFAULT_ENDING
from llmreg.images.image_files import read_image
from llmreg.plans.plan_settings import Normalization
from llmreg.plans.plans import Plans
from llmreg.preprocessing.normalization import normalize_image

REFERENCE_FILE = f"reference{DEFAULT_ENDING}"


@dataclass(frozen=True, eq=False)
class FramedCase:
    """A case in the common frame.

    Attributes:
        image: float32 in [0, 1], (z, y, x) on the frame.
        seen: bool, (z, y, x): which voxels lie in the case's field of view.
        transform: frame point -> case point.
    """

    image: NDArray[np.float32]
    seen: NDArray[np.bool_]
    transform: CaseTransform


@dataclass(frozen=True, eq=False)
class PlacementHints:
    """What a case is placed by, beside its own image.

    Attributes:
        reference: the reference case in the frame (see :func:`read_reference`); None for that case itself.
        template: of the case's modality, where the plans' pre-alignment uses templates.
        mask: the user's foreground on the image's grid, instead of one that is estimated from the image.
        transform: the case transform itself, where the user knows it.
    """

    reference: sitk.Image | None = None
    template: Template | None = None
    mask: sitk.Image | None = None
    transform: CaseTransform | None = None


def bring_into_frame(
    stored: sitk.Image, normalization: Normalization, plans: Plans, hints: PlacementHints, name: Path | str
) -> FramedCase:
    """Normalise an image and bring it into the frame.

    Args:
        stored: the image as read.
        normalization: its modality's plan.
        plans: the dataset's plans.
        hints: what it is placed by.
        name: the image's file, or another name for error messages.

    Raises:
        BadImage: nothing of the image lies in the frame.
    """
    normalized, foreground = normalize_image(stored, normalization, hints.mask)
    transform = hints.transform or align_case(
        CaseToPlace(normalized, foreground.centre, plans.frame, hints.reference, hints.template), plans.prealignment
    )
    framed = resample_image(normalized, plans.frame, transform.to_sitk())
    # The axes of the normalised image are turned, which changes nothing about its field of view.
    field_of_view = ones_on(Grid.from_image(normalized))
    seen = image_to_array(resample_image(field_of_view, plans.frame, transform.to_sitk(), "nearest")) > 0
    if not seen.any():
        raise BadImage(
            name,
            "has no part in the common frame of the plans",
            "check its position in space, or plan with another prealignment.method",
        )
    return FramedCase(image_to_array(framed), seen, transform)


def read_reference(folder: Path, plans: Plans) -> sitk.Image:
    """Read the reference case in the frame from a folder of volumes or a model folder.

    Raises:
        UnreadableFile: it does not lie on the plans' frame.
    """
    path = folder / REFERENCE_FILE
    image = sitk.Cast(read_image(path), sitk.sitkFloat32)
    if not Grid.from_image(image).same_as(plans.frame, tolerance=0.1):
        raise UnreadableFile(path, "does not lie in the plans' frame", "preprocess the dataset again")
    return image
