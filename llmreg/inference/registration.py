"""A registered pair: where each point goes, and what that makes of images, label maps and landmarks."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray

from llmreg.engine.prealignment import CaseTransform, between
from llmreg.errors import UserError
from llmreg.files import atomic_write
from llmreg.geometry.field import (
    DisplacementField,
    Interpolator,
    chain_transforms,
    inverse,
    jacobian_determinant,
    resample_beyond,
    resample_image,
    sampled,
    volume_of,
)
from llmreg.geometry.formats import FORMATS, write_as
from llmreg.geometry.grid import Grid
from llmreg.geometry.io import array_to_image, write_image, write_with_itk
from llmreg.geometry.labels import LabelInterpolation, resample_labels
from llmreg.geometry.points import transform_points

# Voxels of the frame over which the network's displacement fades outside it.
FADE = 10
# What may be written of a pair, with the file's prefix and suffix.
OUTPUTS = {
    "field": ("disp", ".nii.gz"),
    "inverse": ("inverse", ".nii.gz"),
    "warped": ("warped", ".nii.gz"),
    "labels": ("labels", ".nii.gz"),
    "seen": ("seen", ".nii.gz"),
    "jacobian": ("jacobian", ".nii.gz"),
    "uncertainty": ("uncertainty", ".nii.gz"),
    "transform": ("transform", ".h5"),
    "prealignment": ("prealign", ".tfm"),
}
# Two case names, each of which ends with the numbers of subject and modality.
_CASES = re.compile(r".*_(\d{4})_(\d{4})_.*_(\d{4})_(\d{4})")
DEFAULT_OUTPUTS = ("field", "warped", "seen", "prealignment")


@dataclass(frozen=True, eq=False)
class Registration:
    """A registered pair.

    A point of the fixed image is brought into the common frame by the inverse of the fixed case's transform, displaced
    there by the network, and brought to the moving image by the moving case's transform: one lookup, however many
    parts it has.

    Attributes:
        fixed: the image that defines the output grid.
        moving: the image that is warped.
        fixed_transform: how the fixed case was placed: frame point -> fixed point.
        moving_transform: the same for the moving case.
        deformation: the network's part, in the frame and a margin in which it fades to zero.
        near_inverse: what its inverse is close to, which shortens the search; None where nothing is known.
        spread: standard deviation of the deformation over folds or samples, mm, on the frame; None when not asked for.
        refined: the refinement's objective before and after; None without one.
    """

    fixed: sitk.Image
    moving: sitk.Image
    fixed_transform: CaseTransform
    moving_transform: CaseTransform
    deformation: DisplacementField
    near_inverse: DisplacementField | None = None
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
        return between(self.fixed_transform, self.moving_transform)

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
        return resample_image(volume_of(Grid.from_image(self.moving)), self.grid, self.transform, "nearest")

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

        None when not asked for, and of an inverse.
        """
        return None if self.spread is None else resample_beyond(self.spread, self.grid, self._to_frame)

    def inverse(self) -> Registration:
        """The pair turned about: its field lies on the moving image's grid and leads to the fixed image."""
        return self._inverse

    @cached_property
    def _inverse(self) -> Registration:
        back = inverse(self.deformation, self.near_inverse)
        turned = Registration(self.moving, self.fixed, self.moving_transform, self.fixed_transform, back)
        # Turned about twice it is the same pair, and nothing to search for.
        vars(turned)["_inverse"] = self
        return turned

    def warp_image(
        self,
        image: sitk.Image,
        interpolator: Interpolator = "linear",
        default: float = 0.0,
        grid: Grid | None = None,
    ) -> sitk.Image:
        """An image in the moving image's space, as seen from the fixed one.

        Args:
            image: the moving image itself, or another that lies where it does.
            interpolator: ``linear``, ``bspline`` or ``nearest``.
            default: value where the field looks outside the image.
            grid: of the result; the fixed image's when None.
        """
        return resample_image(image, grid or self.grid, self.transform, interpolator, default)

    def warp_label(
        self, label: sitk.Image, interpolation: LabelInterpolation = "nearest", grid: Grid | None = None
    ) -> sitk.Image:
        """A label map in the moving image's space, as seen from the fixed one; see :func:`resample_labels`."""
        return resample_labels(label, grid or self.grid, self.transform, interpolation)

    def warp_points(self, points: ArrayLike) -> NDArray[np.float64]:
        """Points of the fixed image, (N, 3) in mm LPS, to the moving image.

        Points go where the field points; the other way is ``inverse().warp_points``.
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
            folder: where to.
            name: of the pair.
            outputs: any of :data:`OUTPUTS`.
            format: of the fields, one of :data:`llmreg.geometry.formats.FORMATS`.
            label: the moving image's label map, for the output ``labels``.
            label_interpolation: how it is warped.

        Returns:
            File names by output.

        Raises:
            UserError: an output that is unknown, or that this registration does not have.
        """
        unknown = next((output for output in outputs if output not in OUTPUTS), None)
        if unknown is not None:
            raise UserError(f"There is no output '{unknown}': choose among {', '.join(OUTPUTS)}.")
        if format not in FORMATS:
            raise UserError(f"There is no format '{format}': choose among {', '.join(FORMATS)}.")
        files = {output: file_name(output, name, format) for output in OUTPUTS if output in outputs}
        for output, file in files.items():
            self._write(output, Path(folder) / file, format, label, label_interpolation)
        return files

    def _write(
        self, output: str, path: Path, format: str, label: sitk.Image | None, interpolation: LabelInterpolation
    ) -> None:
        if output == "labels":
            if label is None:
                raise UserError(f"{path.name} needs the moving image's label map: give it, or leave out 'labels'.")
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
                raise UserError(f"{path.name} was not estimated: predict with uncertainty.")
            write_image(image, path)

    def _write_field(self, path: Path, format: str) -> None:
        if format == "itk" and "field" not in vars(self):
            # As ITK has it, so that a large field is not copied.
            write_image(sampled(self.transform, self.grid), path)
        else:
            write_as(self.field, path, format, Grid.from_image(self.moving))

    @cached_property
    def _to_frame(self) -> sitk.Transform:
        return self.fixed_transform.to_sitk().GetInverse()


def file_name(output: str, name: str, format: str) -> str:
    """What a pair's output is called, relative to the folder."""
    prefix, suffix = OUTPUTS[output]
    if output not in ("field", "inverse"):
        return f"{prefix}_{name}{suffix}"
    if format != "learn2reg":
        return f"{prefix}_{name}{FORMATS[format].suffix}"
    numbers = _CASES.fullmatch(name)
    if numbers is not None:
        fixed, fixed_modality, moving, moving_modality = numbers.groups()
        # As the challenge's evaluation looks for them.
        short = (fixed_modality, moving_modality) == ("0000", "0001")
        name = f"{fixed}_{moving}" if short else f"{fixed}_{fixed_modality}_{moving}_{moving_modality}"
    return f"learn2reg/{prefix}_{name}{FORMATS[format].suffix}"
