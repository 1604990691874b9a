"""Reading a case's image and label map, checked against each other."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import SimpleITK as sitk

from llmreg.dataset import Case
from llmreg.errors import UserError
from llmreg.geometry.grid import Grid
from llmreg.geometry.io import array_of, check_values, read_image


def read_case(case: Case, labels: Collection[int]) -> tuple[sitk.Image, sitk.Image | None]:
    """The image and, where the case has one, the label map.

    Args:
        case: the case to read.
        labels: the ids of the dataset's label table.

    Raises:
        UserError: a file is unusable, the grids differ, or an id is not in the table.
    """
    image = read_image(case.image)
    check_values(image, case.image)
    if case.label is None:
        return image, None
    label = read_image(case.label)
    if not Grid.from_image(label).same_as(Grid.from_image(image)):
        raise UserError(
            f"The grid of {case.label} differs from that of its image {case.image.name}: resample the label map onto "
            "the image's grid with nearest neighbours."
        )
    unknown = sorted(set(np.unique(array_of(label)).tolist()) - {0, *labels})
    if unknown:
        raise UserError(
            f"{case.label} holds the label id {unknown[0]:g}, which dataset.json does not list: add it there or mend "
            "the label map."
        )
    return image, label
