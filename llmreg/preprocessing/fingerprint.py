"""The dataset's fingerprint: what the planner needs to know about images and labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from llmreg.data.case_images import read_case
from llmreg.data.dataset import Case, Dataset, Pair, pairs_among
from llmreg.data.modalities import is_ct
from llmreg.data.provenance import Sources, sources_of
from llmreg.errors import UserError
from llmreg.files import read_json, write_json
from llmreg.geometry.field import resample_image
from llmreg.geometry.grid import Grid
from llmreg.geometry.io import image_to_array, oriented_lps, read_image
from llmreg.preprocessing.foreground import find_foreground
from llmreg.workers import in_parallel

FINGERPRINT_FILE = "dataset_fingerprint.json"
PERCENTILES = (0.5, 5.0, 50.0, 95.0, 99.5)
SAMPLED_PAIRS = 20
_SEED = 12345


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CaseFingerprint(_Model):
    """One image, after its axes were turned to lie near left, posterior, superior. x, y, z order; mm.

    Attributes:
        sources: what tells the content of the files that were read from others.
        grid: the image's own grid, with its axes turned.
        orientation: the stored axes' directions, for example RAI.
        size: voxels along the turned axes.
        spacing: mm along the turned axes.
        range: the image's least and largest value.
        intensities: percentiles (0.5, 5, 50, 95, 99.5) over the labels' voxels, else the mask's, else the foreground.
        structure_intensities: the same percentiles per label id.
        foreground_centre: middle of the foreground's bounding box, LPS.
        foreground_extent: edge lengths of that box along the LPS axes.
        label_volumes: millilitres per label id.
        label_centroids: LPS per label id.
        mirror_overlap: Dice of the annotated region (the foreground without labels) with its left-right mirror image.
    """

    case: str
    modality: int
    sources: Sources
    grid: dict[str, list[float]]
    orientation: str
    size: list[int]
    spacing: list[float]
    range: list[float]
    intensities: list[float]
    structure_intensities: dict[int, list[float]]
    foreground_centre: list[float]
    foreground_extent: list[float]
    label_volumes: dict[int, float]
    label_centroids: dict[int, list[float]]
    mirror_overlap: float

    @property
    def anisotropy(self) -> float:
        """How many times longer than wide a voxel is."""
        return max(self.spacing) / min(self.spacing)

    def voxels(self, label: int) -> float:
        """Size of a structure in the image's own voxels."""
        return 1000 * self.label_volumes[label] / float(np.prod(self.spacing))


class PairFingerprint(_Model):
    """Two images as they lie in space, before anything is done to them.

    Attributes:
        fixed: its case.
        moving: its case.
        field_of_view_overlap: share of the fixed image's volume that lies in the moving image.
        dice: mean over the structures annotated in both; None without any.
        displacement_mm: mean distance of a structure's centroid in one from that in the other.
        deformation_mm: the same, after the shift that all structures have in common is taken away.
    """

    fixed: str
    moving: str
    field_of_view_overlap: float
    dice: float | None
    displacement_mm: float | None
    deformation_mm: float | None


class Fingerprint(_Model):
    """What is known of a dataset.

    Attributes:
        format_version: of what is looked at and how; fingerprints of another are made anew.
        subjects: number of subjects by modality.
        annotated_cases: share of the cases that may be trained on that have a label map.
        annotated_structures: for each label id, the share of them in which it was annotated (if it is there).
        anisotropy: median over the cases of the longest by the shortest edge of a voxel, by modality.
        structure_voxels: for each label id, the median over the cases of its size in the image's own voxels.
        pairs: some of the pairs that may be trained on.
    """

    format_version: Literal[2] = 2
    dataset_name: str
    modalities: dict[int, str]
    labels: dict[int, str]
    subjects: dict[int, int]
    annotated_cases: float
    annotated_structures: dict[int, float]
    anisotropy: dict[int, float]
    structure_voxels: dict[int, float]
    cases: list[CaseFingerprint]
    pairs: list[PairFingerprint]

    def of_modality(self, modality: int) -> list[CaseFingerprint]:
        return [case for case in self.cases if case.modality == modality]


def case_fingerprint(case: Case, modalities: dict[int, str], known_labels: Collection[int]) -> CaseFingerprint:
    """Raises UserError when the image cannot be used."""
    sources = sources_of(case)
    images = read_case(case, known_labels)
    image = oriented_lps(images.image)
    grid = Grid.from_image(image)
    values = image_to_array(image)
    foreground = find_foreground(image, is_ct(modalities[case.modality]), images.mask)
    labels = np.zeros(grid.shape, np.uint8) if images.label is None else image_to_array(oriented_lps(images.label))
    found = structures(labels, values, grid)
    annotated = labels > 0
    voxel_ml = float(np.prod(grid.spacing)) / 1000
    return CaseFingerprint(
        case=case.name,
        modality=case.modality,
        sources=sources,
        grid=grid.to_dict(),
        orientation=sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(images.image.GetDirection()),
        size=list(grid.size),
        spacing=list(grid.spacing),
        range=[float(values.min()), float(values.max())],
        intensities=_percentiles(values[annotated] if found else foreground.intensities),
        structure_intensities={label: _percentiles(inside) for label, (_, inside) in found.items()},
        foreground_centre=foreground.centre.tolist(),
        foreground_extent=foreground.extent.tolist(),
        label_volumes={label: len(inside) * voxel_ml for label, (_, inside) in found.items()},
        label_centroids={label: centroid.tolist() for label, (centroid, _) in found.items()},
        mirror_overlap=_mirror_overlap(annotated if found else foreground.mask),
    )


def structures(
    labels: NDArray[Any], values: NDArray[Any], grid: Grid
) -> dict[int, tuple[NDArray[np.float64], NDArray[Any]]]:
    """Centroid (mm, LPS) and intensities of each structure."""
    # One pass over the volume, whatever the number of structures.
    where = np.flatnonzero(labels)
    if not len(where):
        return {}
    where = where[np.argsort(labels.ravel()[where], kind="stable")]
    ids, starts = np.unique(labels.ravel()[where], return_index=True)
    found = {}
    for label, inside in zip(ids.tolist(), np.split(where, starts[1:]), strict=True):
        index = np.array([axis.mean() for axis in np.unravel_index(inside, labels.shape)])
        found[int(label)] = grid.index_to_physical(index[::-1]), values.ravel()[inside]
    return found


def _percentiles(values: NDArray[Any]) -> list[float]:
    return [float(p) for p in np.percentile(values, PERCENTILES)]


def _mirror_overlap(region: NDArray[np.bool_]) -> float:
    sides = np.flatnonzero(region.any(axis=(0, 1)))
    cropped = region[:, :, sides[0] : sides[-1] + 1]
    return float((cropped & cropped[:, :, ::-1]).sum() / cropped.sum())


def pair_fingerprint(
    pair: Pair, cases: dict[str, Case], fingerprints: dict[str, CaseFingerprint], known_labels: Collection[int]
) -> PairFingerprint:
    """How two cases lie to each other."""
    fixed, moving = fingerprints[pair.fixed], fingerprints[pair.moving]
    fixed_grid, moving_grid = Grid.from_dict(fixed.grid), Grid.from_dict(moving.grid)
    paths = cases[pair.fixed].label, cases[pair.moving].label
    shared = sorted(fixed.label_centroids.keys() & moving.label_centroids.keys())
    apart = np.array([np.subtract(moving.label_centroids[k], fixed.label_centroids[k]) for k in shared])
    dice = None
    if paths[0] is not None and paths[1] is not None:
        both = annotated_in(cases[pair.fixed], known_labels) & annotated_in(cases[pair.moving], known_labels)
        onto, other = (resample_image(read_image(path), fixed_grid, None, "nearest") for path in (paths[0], paths[1]))
        dice = label_dice(onto, other, both)
    return PairFingerprint(
        fixed=pair.fixed,
        moving=pair.moving,
        field_of_view_overlap=fixed_grid.share_inside(moving_grid),
        dice=dice,
        displacement_mm=float(np.linalg.norm(apart, axis=1).mean()) if shared else None,
        # Of one structure, shift and deformation cannot be told apart.
        deformation_mm=float(np.linalg.norm(apart - apart.mean(axis=0), axis=1).mean()) if len(shared) > 1 else None,
    )


def annotated_in(case: Case, known_labels: Collection[int]) -> set[int]:
    """The structures that were looked for in a case's label map."""
    return set(known_labels if case.annotated_labels is None else case.annotated_labels)


def label_dice(fixed: sitk.Image, moving: sitk.Image, labels: Collection[int]) -> float | None:
    """Mean Dice of label maps on one grid over those of ``labels`` that either holds; None when neither holds any."""
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(sitk.Cast(fixed, sitk.sitkInt32), sitk.Cast(moving, sitk.sitkInt32))
    present = np.union1d(sitk.GetArrayViewFromImage(fixed), sitk.GetArrayViewFromImage(moving))
    scores = [overlap.GetDiceCoefficient(label) for label in sorted(set(labels) & set(present.astype(int).tolist()))]
    return float(np.mean(scores)) if scores else None


def extract_fingerprint(dataset: Dataset, num_processes: int = 2, known: Fingerprint | None = None) -> Fingerprint:
    """Read every case once, but those that ``known`` has as they are now.

    Raises:
        UserError: an image cannot be used.
    """
    usable = known is not None and (known.modalities, known.labels) == (dataset.modalities, dataset.labels)
    cases = {c.case: c for c in known.cases} if known is not None and usable else {}
    current = {case.name for case in dataset.cases if (had := cases.get(case.name)) and had.sources == sources_of(case)}
    waiting = [case for case in dataset.cases if case.name not in current]
    look = partial(case_fingerprint, modalities=dataset.modalities, known_labels=dataset.labels)
    for found in in_parallel(look, waiting, num_processes, "Fingerprint"):
        cases[found.case] = found
    pairs = sampled_pairs(dataset)
    old = {(p.fixed, p.moving): p for p in known.pairs} if known is not None else {}
    kept = {pair for pair in pairs if {pair.fixed, pair.moving} <= current and (pair.fixed, pair.moving) in old}
    by_name = {case.name: case for case in dataset.cases}
    compare = partial(pair_fingerprint, cases=by_name, fingerprints=cases, known_labels=dataset.labels)
    new = [pair for pair in pairs if pair not in kept]
    compared = dict(zip(new, in_parallel(compare, new, num_processes, "Compare", "pair"), strict=True))
    return summarised(
        dataset,
        [cases[case.name] for case in dataset.cases],
        [old[pair.fixed, pair.moving] if pair in kept else compared[pair] for pair in pairs],
    )


def sampled_pairs(dataset: Dataset) -> list[Pair]:
    """Some of the pairs that may be trained on, always the same; those with labels first."""
    usable = [case for case in dataset.cases if case.name not in dataset.held_out]
    labelled = [case.name for case in usable if case.label is not None]
    pairs = pairs_among(dataset, labelled) or pairs_among(dataset, [case.name for case in usable])
    if len(pairs) > SAMPLED_PAIRS:
        chosen = np.random.default_rng(_SEED).choice(len(pairs), SAMPLED_PAIRS, replace=False)
        pairs = [pairs[i] for i in sorted(chosen)]
    return pairs


def summarised(dataset: Dataset, cases: Sequence[CaseFingerprint], pairs: Sequence[PairFingerprint]) -> Fingerprint:
    """The fingerprint of a dataset whose cases and pairs were looked at."""
    subjects, anisotropy = defaultdict(set), defaultdict(list)
    voxels: dict[int, list[float]] = defaultdict(list)
    for case, found in zip(dataset.cases, cases, strict=True):
        subjects[case.modality].add(case.subject)
        anisotropy[case.modality].append(found.anisotropy)
        for label in found.label_volumes:
            voxels[label].append(found.voxels(label))
    # What is held out may have labels or not: it is not trained on.
    usable = [case for case in dataset.cases if case.name not in dataset.held_out]
    annotated = [annotated_in(case, dataset.labels) for case in usable if case.label is not None]
    return Fingerprint(
        dataset_name=dataset.name,
        modalities=dataset.modalities,
        labels=dataset.labels,
        subjects={modality: len(found) for modality, found in sorted(subjects.items())},
        annotated_cases=len(annotated) / max(1, len(usable)),
        annotated_structures={
            label: sum(label in known for known in annotated) / max(1, len(usable)) for label in dataset.labels
        },
        anisotropy={modality: float(np.median(found)) for modality, found in sorted(anisotropy.items())},
        structure_voxels={label: float(np.median(found)) for label, found in sorted(voxels.items())},
        cases=list(cases),
        pairs=list(pairs),
    )


def write_fingerprint(path: Path, fingerprint: Fingerprint) -> None:
    write_json(path, fingerprint.model_dump(mode="json"))


def read_fingerprint(path: Path) -> Fingerprint:
    """Raises UserError when the file is missing or is of another version."""
    try:
        return Fingerprint.model_validate(read_json(path))
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UserError(f"{path}: '{where}' is not as expected: run llmreg_extract_fingerprint again.") from error
