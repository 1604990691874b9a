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
from llmreg.errors import UserError
from llmreg.geometry.grid import Grid, array_to_image
from llmreg.images.checks import check_values, to_scalar_volume
from llmreg.images.image_files import read_header, read_image
from llmreg.inference.models import Model
from llmreg.plans.plans import Plans
from llmreg.preprocessing.common_frame import FramedCase, PlacementHints, bring_into_frame, read_reference, safe_default
from llmreg.preprocessing.dataset_alignment import ALL_CASES, name_template_set, read_template_set

# Pairs share images, so that a few cases are kept; images with more voxels than this are not.
CACHED_CASES, LARGE = 4, 2**25
# A case whose place along the body is less certain than this is worth a warning.
UNCERTAIN_MM = 20.0

# A file, an image, or voxels (z, y, x) with their grid.
ImageLike = Path | str | sitk.Image | tuple[NDArray[Any], Grid]


@dataclass(frozen=True, eq=False)
class ImageInput:
    """An image to register.

    Attributes:
        image: a file, an image in memory, or an array with its grid.
        modality: name or number of its modality; the dataset's fixed or moving modality when None.
        mask: a foreground on the image's grid, above 0 where it counts, by which the image is placed and normalised
            instead of one found in it.
    """

    image: ImageLike
    modality: str | int | None = None
    mask: ImageLike | None = None


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
        has_templates = plans.prealignment.uses_templates
        self._templates = read_template_set(model.folder, templates) if has_templates else {}
        self._read_files = lru_cache(maxsize=CACHED_CASES)(self._read_stamped_files)

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
        modality, trained = source.modality, self._plans.normalization
        if modality is None:
            return replace(source, modality=default)
        if isinstance(modality, int) and modality not in trained:
            listed = ", ".join(f"{number} ({settings.modality})" for number, settings in trained.items())
            raise UserError(f"The model has no modality {modality}: choose among {listed}, or give a name.")
        if isinstance(modality, int) or (modality.isdecimal() and int(modality) in trained):
            return replace(source, modality=int(modality))
        names = {settings.modality.casefold(): number for number, settings in reversed(trained.items())}
        return replace(source, modality=names.get(modality.casefold(), modality))

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
        assert source.modality is not None
        files = [Path(item) for item in (source.image, source.mask) if isinstance(item, Path | str)]
        all_are_files = len(files) == 1 + (source.mask is not None)
        exist = all_are_files and all(file.is_file() for file in files)
        if exist and transform is None and not is_large(files[0]):
            stamps = ((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
            image, case = self._read_files(tuple(stamps), source.modality)
            # SimpleITK copies an image when it is written to, so that nobody changes the one that is kept.
            return sitk.Image(image), case
        return self._bring_into_frame(source, role, transform)

    def _read_stamped_files(
        self, files: tuple[tuple[Any, ...], ...], modality: str | int
    ) -> tuple[sitk.Image, FramedCase]:
        """``files``: the image and, where there is one, its mask, each with the stamp that tells a rewritten file."""
        image, *masks = (file for file, *_ in files)
        return self._bring_into_frame(ImageInput(image, modality, *masks))

    def _bring_into_frame(
        self, source: ImageInput, role: str = "", transform: CaseTransform | None = None
    ) -> tuple[sitk.Image, FramedCase]:
        modality = source.modality
        assert modality is not None
        image, name = _load(source.image, role)
        check_values(image, name)
        foreground = None
        if source.mask is not None:
            mask, mask_name = _load(source.mask, f"{role}'s mask")
            foreground = check_mask(mask, mask_name, image, Path(name).name)
        template = self._templates.get(modality) if isinstance(modality, int) else None
        hints = PlacementHints(self._reference, template, foreground, transform)
        trained = self._plans.normalization
        if isinstance(modality, int):
            normalization = trained[modality]
        else:
            names = ", ".join(settings.modality for settings in trained.values())
            self._warn(f"The model was not trained on '{modality}' (but on {names}): its own percentiles are used.")
            normalization = safe_default(modality)
        case = bring_into_frame(image, normalization, self._plans, hints, name)
        if (case.transform.uncertainty_mm or 0) > UNCERTAIN_MM:
            self._warn(
                f"The place of {name} along the body was found by its image alone and may be "
                f"{case.transform.uncertainty_mm:.0f} mm off: look at the result, or give an initial transform."
            )
        return image, case


def is_large(path: Path) -> bool:
    """Whether an image has so many voxels that few fit into memory; False when its header cannot be read."""
    try:
        return math.prod(read_header(path).GetSize()) > LARGE
    except RuntimeError:
        return False  # Reading the image raises the error that says what is wrong.


def _load(source: ImageLike, role: str) -> tuple[sitk.Image, str]:
    """An image, and what errors call it."""
    if isinstance(source, Path | str):
        return read_image(Path(source)), str(source)
    return to_scalar_volume(array_to_image(*source) if isinstance(source, tuple) else source, role), role
