"""Images as a user gives them, read and brought into the common frame."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import SimpleITK as sitk
from numpy.typing import NDArray

from llmreg.data.case_images import check_mask
from llmreg.engine.prealignment import CaseTransform
from llmreg.errors import BadArgument, UserError
from llmreg.geometry.grid import Grid, array_to_image
from llmreg.images.image_files import check_values, read_header, read_image, to_scalar_volume
from llmreg.inference.models import Model
from llmreg.plans.plans import Plans
from llmreg.preprocessing.common_frame import FramedCase, bring_into_frame, read_reference, safe_default
from llmreg.preprocessing.dataset_alignment import ALL_CASES, name_template_set, read_template_set

# Pairs share images, so that a few cases are kept; images with more voxels than this are not.
CACHED_CASES, LARGE = 4, 2**25
# A case whose place along the body is less certain than this is worth a warning.
UNCERTAIN_MM = 20.0

# A file, an image, or voxels (z, y, x) with their grid.
ImageLike = Path | str | sitk.Image | tuple[NDArray[Any], Grid]


@dataclass(frozen=True)
class ImageInput:
    """An image to register.

    Attributes:
        image: a file, an image in memory, or an array with its grid.
        modality: name or number of its modality; the dataset's fixed or moving modality when None.
        mask: a foreground on the image's grid, above 0 where it counts, by which the image is placed and normalised
            instead of one found in it.

    Raises:
        BadArgument: the image or the mask is nothing of that kind.
    """

    image: ImageLike
    modality: str | int | None = None
    mask: ImageLike | None = None

    def __post_init__(self) -> None:
        _check_kind("image", self.image)
        if self.mask is not None:
            _check_kind("mask", self.mask)


class CaseReader:
    """Reads images and brings them into a model's common frame. The last few files are kept.

    Args:
        model: whose reference image and templates place the images.
        plans: its plans.
        warn: is called with sentences that a user should read.
    """

    def __init__(self, model: Model, plans: Plans, warn: Callable[[str], None]) -> None:
        self._plans, self._warn = plans, warn
        self._reference = read_reference(model.folder, plans)
        # A single fold is used with its own templates, which were learned without the cases that it holds out.
        templates = name_template_set(next(iter(model.folds))) if len(model.folds) == 1 else ALL_CASES
        self._templates = read_template_set(model.folder, templates) if plans.prealignment.uses_templates else {}
        self._read_files = lru_cache(maxsize=CACHED_CASES)(self._bring_into_frame)

    def complete(self, image: ImageInput | ImageLike, default: int) -> ImageInput:
        """The image as an input whose modality is known.

        The modality is a number where the model was trained on it, since two modalities may share a name and differ in
        their window; else it is a name.

        Args:
            image: as a user gives it.
            default: number of the modality of an image that has none.

        Raises:
            UserError: a number that the model does not know.
        """
        source = image if isinstance(image, ImageInput) else ImageInput(image)
        trained = self._plans.normalization
        modality = default if source.modality is None else source.modality
        if isinstance(modality, str):
            numbers = {settings.modality.casefold(): number for number, settings in reversed(trained.items())}
            is_number = modality.isdecimal() and int(modality) in trained
            modality = int(modality) if is_number else numbers.get(modality.casefold(), modality)
        elif modality not in trained:
            listed = ", ".join(f"{number} ({settings.modality})" for number, settings in trained.items())
            raise UserError(f"The model has no modality {modality}: choose among {listed}, or give a name.")
        return replace(source, modality=modality)

    def read(
        self, source: ImageInput, role: str, transform: CaseTransform | None = None
    ) -> tuple[sitk.Image, FramedCase]:
        """Read an image and bring it into the frame.

        Args:
            source: the image, with its modality as :meth:`complete` gives it.
            role: what errors call an image that is no file.
            transform: where the case lies, instead of searching for it.

        Raises:
            UserError: the image or its mask cannot be used.
        """
        files = [Path(item) for item in (source.image, source.mask) if isinstance(item, Path | str)]
        are_files = len(files) == 1 + (source.mask is not None) and all(file.is_file() for file in files)
        if are_files and transform is None and not is_large(files[0]):
            stamps = tuple((file.stat().st_size, file.stat().st_mtime_ns) for file in files)
            image, case = self._read_files(source, stamps=stamps)
            # SimpleITK copies an image when it is written to, so that nobody changes the one that is kept.
            return sitk.Image(image), case
        return self._bring_into_frame(source, role, transform)

    def _bring_into_frame(
        self,
        source: ImageInput,
        role: str = "",
        transform: CaseTransform | None = None,
        *,
        stamps: tuple[tuple[int, int], ...] = (),
    ) -> tuple[sitk.Image, FramedCase]:
        """Do the work of :meth:`read`. ``stamps`` tell files that were rewritten from those whose cases are kept."""
        modality = source.modality
        assert modality is not None
        image, name = _load(source.image, role)
        check_values(image, name)
        foreground = None
        if source.mask is not None:
            mask, mask_name = _load(source.mask, f"{role}'s mask")
            foreground = check_mask(mask, mask_name, image, Path(name).name)
        template = self._templates.get(modality) if isinstance(modality, int) else None
        trained = self._plans.normalization
        if isinstance(modality, int):
            normalization = trained[modality]
        else:
            names = ", ".join(settings.modality for settings in trained.values())
            self._warn(f"The model was not trained on '{modality}' (but on {names}): its own percentiles are used.")
            normalization = safe_default(modality)
        case = bring_into_frame(
            image,
            normalization,
            self._plans,
            name,
            reference=self._reference,
            template=template,
            mask=foreground,
            transform=transform,
        )
        if (case.transform.uncertainty_mm or 0) > UNCERTAIN_MM:
            self._warn(
                f"The place of {name} along the body was found by its image alone and may be "
                f"{case.transform.uncertainty_mm:.0f} mm off: look at the result, or give an initial transform."
            )
        return image, case


def is_large(path: Path) -> bool:
    """Whether an image is too large for many to be kept in memory; False when its header cannot be read."""
    try:
        return math.prod(read_header(path).GetSize()) > LARGE
    except RuntimeError:
        return False  # Reading the image raises the error that says what is wrong.


def _check_kind(argument: str, source: ImageLike) -> None:
    """Check that an image says where it lies. Raises BadArgument when it does not."""
    match source:
        case Path() | str() | sitk.Image():
            return
        case array, Grid(shape=shape):
            if array.shape != shape:
                raise BadArgument(
                    argument, f"{argument} is an array {array.shape} with a grid {shape}: arrays are (z, y, x)."
                )
        case _:
            raise BadArgument(
                argument,
                f"{argument} is of the type {type(source).__name__}: give a file, a SimpleITK image, or an array with "
                "its grid as (array, Grid).",
            )


def _load(source: ImageLike, role: str) -> tuple[sitk.Image, str]:
    """An image, and what errors call it."""
    if isinstance(source, Path | str):
        return read_image(Path(source)), str(source)
    return to_scalar_volume(array_to_image(*source) if isinstance(source, tuple) else source, role), role
