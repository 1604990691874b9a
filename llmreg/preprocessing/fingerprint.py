"""The dataset's fingerprint: what the planner needs to know about images and labels."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from pydantic import BaseModel, ConfigDict, ValidationError

from llmreg.dataset import Case, Dataset
from llmreg.errors import UserError
from llmreg.files import read_json, write_json
from llmreg.geometry.grid import Grid
from llmreg.geometry.io import array_of, oriented_lps
from llmreg.preprocessing.cases import read_case
from llmreg.preprocessing.normalization import foreground_mask, is_ct
from llmreg.workers import in_parallel

FINGERPRINT_FILE = "dataset_fingerprint.json"
PERCENTILES = (0.5, 5.0, 50.0, 95.0, 99.5)


class CaseFingerprint(BaseModel):
    """One image, after its axes were turned to lie near left, posterior, superior. x, y, z order; mm.

    Attributes:
        grid: the image's own grid, as stored.
        orientation: the stored axes' directions, for example RAI.
        size: voxels along the turned axes.
        spacing: mm along the turned axes.
        intensities: percentiles (0.5, 5, 50, 95, 99.5) over the labels' voxels, else the mask's, else the foreground.
        foreground_centre: middle of the foreground's bounding box, LPS.
        foreground_extent: edge lengths of that box along the LPS axes.
        label_volumes: millilitres per label id.
        label_centroids: LPS per label id.
        mirror_overlap: Dice of the annotated region (the foreground without labels) with its left-right mirror image.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    case: str
    modality: int
    grid: dict[str, list[float]]
    orientation: str
    size: list[int]
    spacing: list[float]
    intensities: list[float]
    foreground_centre: list[float]
    foreground_extent: list[float]
    label_volumes: dict[int, float]
    label_centroids: dict[int, list[float]]
    mirror_overlap: float


class Fingerprint(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset_name: str
    modalities: dict[int, str]
    cases: list[CaseFingerprint]

    def of_modality(self, modality: int) -> list[CaseFingerprint]:
        return [case for case in self.cases if case.modality == modality]


def case_fingerprint(case: Case, modalities: dict[int, str], known_labels: frozenset[int]) -> CaseFingerprint:
    """Raises UserError when the image cannot be used."""
    images = read_case(case, known_labels)
    image = oriented_lps(images.image)
    grid = Grid.from_image(image)
    values = array_of(image)
    mask = foreground_mask(image, is_ct(modalities[case.modality]))
    labels = np.zeros(grid.shape, np.uint8) if images.label is None else array_of(oriented_lps(images.label))
    counted = labels > 0
    given = mask if images.mask is None else array_of(oriented_lps(images.mask)) > 0
    regarded = counted if counted.any() else given if given.any() else mask
    percentiles = np.percentile(values[regarded], PERCENTILES)
    box = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in (2, 1, 0)]
    first, last = np.array([b[0] for b in box]), np.array([b[-1] for b in box])
    voxel_ml = float(np.prod(grid.spacing)) / 1000
    sides = np.flatnonzero(regarded.any(axis=(0, 1)))
    cropped = regarded[:, :, sides[0] : sides[-1] + 1]
    mirrored = cropped[:, :, ::-1]
    volumes, centroids = {}, {}
    for label in np.unique(labels[counted]).tolist():
        where = np.argwhere(labels == label)
        volumes[int(label)] = len(where) * voxel_ml
        centroids[int(label)] = grid.index_to_physical(where.mean(axis=0)[::-1]).tolist()
    return CaseFingerprint(
        case=case.name,
        modality=case.modality,
        grid=Grid.from_image(images.image).to_dict(),
        orientation=sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(images.image.GetDirection()),
        size=list(grid.size),
        spacing=list(grid.spacing),
        intensities=[float(p) for p in percentiles],
        foreground_centre=grid.index_to_physical((first + last) / 2).tolist(),
        foreground_extent=((last - first + 1) * np.asarray(grid.spacing)).tolist(),
        label_volumes=volumes,
        label_centroids=centroids,
        mirror_overlap=float(2 * (cropped & mirrored).sum() / max(2 * cropped.sum(), 1)),
    )


def extract_fingerprint(dataset: Dataset, num_processes: int = 2) -> Fingerprint:
    """Read every case once. Raises UserError for an image that cannot be used."""
    fingerprint = partial(case_fingerprint, modalities=dataset.modalities, known_labels=frozenset(dataset.labels))
    cases = list(in_parallel(fingerprint, dataset.cases, num_processes, "Fingerprint"))
    return Fingerprint(dataset_name=dataset.name, modalities=dataset.modalities, cases=cases)


def write_fingerprint(path: Path, fingerprint: Fingerprint) -> None:
    write_json(path, fingerprint.model_dump(mode="json"))


def read_fingerprint(path: Path) -> Fingerprint:
    """Raises UserError when the file is missing or is of another version."""
    try:
        return Fingerprint.model_validate(read_json(path))
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UserError(f"{path}: '{where}' is not as expected: run llmreg_extract_fingerprint again.") from error
