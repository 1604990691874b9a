"""A registered pair, which warps images and label maps and maps landmarks."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import get_args

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray

from llmreg.arguments import check_choice
from llmreg.engine.prealignment import CaseTransform, pair_prealignment
from llmreg.errors import BadArgument, UnknownName
from llmreg.files import atomic_write
from llmreg.geometry.field import (
    DisplacementField,
    chain_transforms,
    invert_field,
    jacobian_determinant,
    sample_transform,
)
from llmreg.geometry.grid import Grid, array_to_image
from llmreg.geometry.points import transform_points
from llmreg.geometry.resampling import (
    Interpolator,
    LabelInterpolation,
    ones_on,
    resample_image,
    resample_labels,
    resample_with_edge,
)
from llmreg.images.fields import write_field
from llmreg.images.formats import DEFAULT_ENDING, FIELD_FORMATS
from llmreg.images.image_files import write_image
from llmreg.images.itk import write_with_itk

# Outside the frame, the network's displacement fades over this number of voxels.
FADE = 10
# These outputs may be written for a pair; each has the prefix and the suffix of its file.
OUTPUTS = {
    "field": ("disp", DEFAULT_ENDING),
    "inverse": ("inverse", DEFAULT_ENDING),
    "warped": ("warped", DEFAULT_ENDING),
    "labels": ("labels", DEFAULT_ENDING),
    "seen": ("seen", DEFAULT_ENDING),
    "jacobian": ("jacobian", DEFAULT_ENDING),
    "uncertainty": ("uncertainty", DEFAULT_ENDING),
    "transform": ("transform", ".h5"),
    "prealignment": ("prealign", ".tfm"),
}
# It matches two case names, each of which ends with the numbers of its subject and its modality.
_CASES = re.compile(r".*_(\d{4})_(\d{4})_.*_(\d{4})_(\d{4})")
DEFAULT_OUTPUTS = ("field", "warped", "seen", "prealignment")


@dataclass(frozen=True, eq=False)
class Registration:
    """A registered pair.

    A point of the fixed image is brought into the common frame by the inverse of the fixed case's transform, displaced
    there by the network, and brought to the moving image by the moving case's transform. Images are resampled once.

    Attributes:
        fixed: the image that defines the output grid.
        moving: the image that is warped.
        fixed_transform: how the fixed case was placed: frame point -> fixed point.
        moving_transform: the same for the moving case.
        deformation: the network's part, in the frame and a margin in which it fades to zero.
        inverse_guess: an estimate of its inverse, from which the search for the inverse starts; None without one.
        spread: standard deviation of the deformation over folds, mm, on the frame; None when it was not measured.
        refined: the refinement's objective before and after; None without one.
    """

    fixed: sitk.Image
    moving: sitk.Image
    fixed_transform: CaseTransform
    moving_transform: CaseTransform
    deformation: DisplacementField
    inverse_guess: DisplacementField | None = None
    spread: sitk.Image | None = None
    refined: tuple[float, float] | None = None

    @cached_property
    def grid(self) -> Grid:
        """The fixed image's grid, on which all outputs lie."""
        return Grid.from_image(self.fixed)

    @cached_property
    def transform(self) -> sitk.Transform:
        """Fixed points -> moving points (mm, LPS), with which ``sitk.Resample(moving, fixed, transform)`` warps."""
        return chain_transforms(self._to_frame, self.deformation.to_transform(), self.moving_transform.to_sitk())

    @property
    def prealignment(self) -> sitk.Transform:
        """The affine part alone, fixed points -> moving points."""
        return pair_prealignment(self.fixed_transform, self.moving_transform)

    @cached_property
    def field(self) -> DisplacementField:
        """The whole displacement on the fixed image's grid, pre-alignment included (mm, LPS)."""
        return DisplacementField.from_transform(self.transform, self.grid)

    @cached_property
    def warped(self) -> sitk.Image:
        """The moving image on the fixed image's grid, 0 where the field looks outside it."""
        return self.warp_image(self.moving)

    @property
    def seen(self) -> sitk.Image:
        """1 where the field looks into the moving image's field of view, else 0; on the fixed image's grid."""
        return resample_image(ones_on(Grid.from_image(self.moving)), self.grid, self.transform, "nearest")

    @property
    def jacobian(self) -> sitk.Image:
        """Determinant of the whole field's Jacobian, pre-alignment included, on the fixed image's grid.

        The volume that a fixed voxel takes up in the moving image: above 1 the moving image is larger there and shrinks
        when it is warped; at 0 or below the field folds.
        """
        return array_to_image(jacobian_determinant(self.field), self.grid)

    @property
    def uncertainty(self) -> sitk.Image | None:
        """Standard deviation of the displacement, mm, on the fixed image's grid; its edge continues outside the frame.

        None when it was not measured, and of an inverse.
        """
        return None if self.spread is None else resample_with_edge(self.spread, self.grid, self._to_frame)

    def inverse(self) -> "Registration":
        """The registration in the other direction: its field lies on the moving image's grid."""
        return self._inverse

    @cached_property
    def _inverse(self) -> "Registration":
        backward = invert_field(self.deformation, self.inverse_guess)
        inverse = Registration(self.moving, self.fixed, self.moving_transform, self.fixed_transform, backward)
        # The inverse of the inverse is this registration, so it need not be searched for.
        vars(inverse)["_inverse"] = self
        return inverse

    def warp_image(
        self,
        image: sitk.Image,
        interpolator: Interpolator = "linear",
        default: float = 0.0,
        grid: Grid | None = None,
    ) -> sitk.Image:
        """Warp an image from the moving image's space onto the fixed image's grid.

        Args:
            image: the moving image itself, or another that lies where it does.
            interpolator: ``linear``, ``bspline`` or ``nearest``.
            default: value where the field looks outside the image.
            grid: of the result; the fixed image's when None.

        Raises:
            UnknownName: there is no such interpolator.
        """
        check_choice("interpolator", interpolator, get_args(Interpolator))
        return resample_image(image, grid or self.grid, self.transform, interpolator, default)

    def warp_label(
        self, label: sitk.Image, interpolation: LabelInterpolation = "nearest", grid: Grid | None = None
    ) -> sitk.Image:
        """Warp a label map as :meth:`warp_image` does images; see :func:`resample_labels`."""
        check_choice("interpolation", interpolation, get_args(LabelInterpolation))
        return resample_labels(label, grid or self.grid, self.transform, interpolation)

    def warp_points(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map points (N, 3), mm LPS, of the fixed image to the moving image.

        ``inverse().warp_points`` maps points of the moving image to the fixed one.
        """
        return transform_points(points, self.transform)

    def save(
        self,
        folder: Path | str,
        name: str,
        outputs: Collection[str] = DEFAULT_OUTPUTS,
        format: str = "itk",
        label: sitk.Image | None = None,
        label_interpolation: LabelInterpolation = "nearest",
    ) -> dict[str, str]:
        """Write outputs as ``<prefix>_<name><suffix>``.

        Args:
            folder: the folder to write to.
            name: of the pair, in file names.
            outputs: any of :data:`OUTPUTS`.
            format: of the fields, one of :data:`llmreg.images.formats.FIELD_FORMATS`.
            label: the moving image's label map, for the output ``labels``.
            label_interpolation: how it is warped.

        Returns:
            File names by output.

        Raises:
            UnknownName: an output or a format does not exist.
            BadArgument: this registration does not have an output.
        """
        unknown = next((output for output in outputs if output not in OUTPUTS), None)
        if unknown is not None:
            raise UnknownName("output", unknown, list(OUTPUTS))
        FIELD_FORMATS.get(format)
        files = {output: file_name(output, name, format) for output in OUTPUTS if output in outputs}
        for output, file in files.items():
            self._write(output, Path(folder) / file, format, label, label_interpolation)
        return files

    def _write(
        self, output: str, path: Path, format: str, label: sitk.Image | None, interpolation: LabelInterpolation
    ) -> None:
        if output == "labels":
            if label is None:
                raise BadArgument("label", f"{path.name} needs the moving image's label map: give it, or leave it out.")
            write_image(self.warp_label(label, interpolation), path)
        elif output == "inverse":
            self.inverse()._write_field(path, format)
        elif output == "field":
            self._write_field(path, format)
        elif output in ("transform", "prealignment"):
            with atomic_write(path) as temporary:
                write_with_itk(getattr(self, output), temporary)
        else:
            image = getattr(self, output)
            if image is None:
                raise BadArgument("uncertainty", f"{path.name} was not estimated: predict with uncertainty.")
            write_image(image, path)

    def _write_field(self, path: Path, format: str) -> None:
        if format == "itk" and "field" not in vars(self):
            # ITK's image of the field is written without a copy, which would be large.
            write_image(sample_transform(self.transform, self.grid), path)
        else:
            write_field(self.field, path, format, Grid.from_image(self.moving))

    @cached_property
    def _to_frame(self) -> sitk.Transform:
        return self.fixed_transform.to_sitk().GetInverse()


def file_name(output: str, name: str, format: str) -> str:
    """The name of a pair's output file, relative to the folder."""
    prefix, suffix = OUTPUTS[output]
    if output not in ("field", "inverse"):
        return f"{prefix}_{name}{suffix}"
    if format != "learn2reg":
        return f"{prefix}_{name}{FIELD_FORMATS.get(format).endings[0]}"
    numbers = _CASES.fullmatch(name)
    if numbers is not None:
        fixed, fixed_modality, moving, moving_modality = numbers.groups()
        # The challenge's evaluation looks for files of these names.
        short = (fixed_modality, moving_modality) == ("0000", "0001")
        name = f"{fixed}_{moving}" if short else f"{fixed}_{fixed_modality}_{moving}_{moving_modality}"
    return f"learn2reg/{prefix}_{name}{FIELD_FORMATS.get(format).endings[0]}"
