"""The dataset's fingerprint: everything that the planner needs to know about images and labels."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from pydantic import ValidationError

from llmreg.data.case_images import Sources, read_case, sources_of
from llmreg.data.dataset import Case, Dataset, Pair, draw_pairs, pairs_among
from llmreg.errors import UnreadableFile
from llmreg.files import read_json
from llmreg.geometry.grid import Grid, image_to_array, orient_to_lps
from llmreg.geometry.resampling import resample_image
from llmreg.images.image_files import read_image
from llmreg.preprocessing.common_frame import find_foreground, is_ct
from llmreg.settings import Settings, locate_problem
from llmreg.workers import map_in_processes

FINGERPRINT_FILE = "dataset_fingerprint.json"
PERCENTILES = (0.5, 5.0, 50.0, 95.0, 99.5)
SAMPLED_PAIRS = 20


class CaseFingerprint(Settings):
    """One image, with its axes turned to lie near left, posterior, superior. Sizes and spacings are x, y, z; mm.

    Attributes:
        case: the case's name.
        modality: its number.
        sources: digests of the files that were read.
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


class PairFingerprint(Settings):
    """Two images as they lie in space, before pre-alignment.

    Attributes:
        fixed: name of the fixed case.
        moving: name of the moving case.
        field_of_view_overlap: share of the fixed image's volume that lies in the moving image.
        dice: mean over the structures annotated in both; None without any.
        displacement_mm: mean distance between a structure's centroids in the two images.
        deformation_mm: the same after the mean shift of all structures is removed.
    """

    fixed: str
    moving: str
    field_of_view_overlap: float
    dice: float | None
    displacement_mm: float | None
    deformation_mm: float | None


class Fingerprint(Settings):
    """The measurements of a dataset.

    Attributes:
        format_version: goes up when something else is measured; other fingerprints are replaced.
        dataset_name: the dataset's name.
        modalities: their names by number.
        labels: names of the structures by label id.
        subjects: number of subjects by modality.
        annotated_cases: share of the cases that may be trained on that have a label map.
        annotated_structures: for each label id, the share of these cases in which it was looked for.
        anisotropy: median over the cases of the ratio of a voxel's longest to its shortest edge, by modality.
        structure_voxels: for each label id, the median over the cases of its size in the image's own voxels.
        cases: all cases.
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


def measure_case(case: Case, modalities: dict[int, str], label_table: Collection[int]) -> CaseFingerprint:
    """Read a case and measure it. Raises UserError when an image cannot be used."""
    sources = sources_of(case)
    images = read_case(case, label_table)
    image = orient_to_lps(images.image)
    grid = Grid.from_image(image)
    values = image_to_array(image)
    foreground = find_foreground(image, ct=is_ct(modalities[case.modality]), mask=images.mask)
    labels = np.zeros(grid.shape, np.uint8) if images.label is None else image_to_array(orient_to_lps(images.label))
    structures = measure_structures(labels, values, grid)
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
        intensities=np.percentile(values[annotated] if structures else foreground.intensities, PERCENTILES).tolist(),
        structure_intensities={
            label: np.percentile(inside, PERCENTILES).tolist() for label, (_, inside) in structures.items()
        },
        foreground_centre=foreground.centre.tolist(),
        foreground_extent=foreground.extent.tolist(),
        label_volumes={label: len(inside) * voxel_ml for label, (_, inside) in structures.items()},
        label_centroids={label: centroid.tolist() for label, (centroid, _) in structures.items()},
        mirror_overlap=_mirror_overlap(annotated if structures else foreground.mask),
    )


def measure_structures(
    labels: NDArray[Any], values: NDArray[Any], grid: Grid
) -> dict[int, tuple[NDArray[np.float64], NDArray[Any]]]:
    """Measure the centroid (mm, LPS) and the intensities of each structure.

    Args:
        labels: label map (z, y, x), 0 is background.
        values: intensities (z, y, x).
        grid: of both.
    """
    # Labelled voxels are sorted once, so that the time hardly depends on the number of structures.
    labelled = np.flatnonzero(labels)
    labelled = labelled[np.argsort(labels.ravel()[labelled], kind="stable")]
    ids, starts = np.unique(labels.ravel()[labelled], return_index=True)
    structures = {}
    # Even without any structure there is an empty part.
    for label, inside in zip(ids.tolist(), np.split(labelled, starts[1:]), strict=False):
        index = np.array([axis.mean() for axis in np.unravel_index(inside, labels.shape)])
        structures[int(label)] = grid.index_to_physical(index[::-1]), values.ravel()[inside]
    return structures


def _mirror_overlap(region: NDArray[np.bool_]) -> float:
    sides = np.flatnonzero(region.any(axis=(0, 1)))
    cropped = region[:, :, sides[0] : sides[-1] + 1]
    return float((cropped & cropped[:, :, ::-1]).sum() / cropped.sum())


def measure_pair(
    pair: Pair, cases: dict[str, Case], fingerprints: dict[str, CaseFingerprint], label_table: Collection[int]
) -> PairFingerprint:
    """Measure how two cases lie to each other.

    Args:
        pair: the names of the cases.
        cases: all cases by name.
        fingerprints: their fingerprints by name.
        label_table: ids of the dataset's label table.
    """
    fixed_case, moving_case = cases[pair.fixed], cases[pair.moving]
    fixed, moving = fingerprints[pair.fixed], fingerprints[pair.moving]
    fixed_grid, moving_grid = Grid.from_dict(fixed.grid), Grid.from_dict(moving.grid)
    shared = sorted(fixed.label_centroids.keys() & moving.label_centroids.keys())
    shifts = np.array([np.subtract(moving.label_centroids[k], fixed.label_centroids[k]) for k in shared])
    dice = None
    if fixed_case.label is not None and moving_case.label is not None:
        fixed_map, moving_map = (
            resample_image(read_image(path), fixed_grid, None, "nearest")
            for path in (fixed_case.label, moving_case.label)
        )
        annotated = fixed_case.annotated_structures(label_table) & moving_case.annotated_structures(label_table)
        dice = label_dice(fixed_map, moving_map, annotated)
    return PairFingerprint(
        fixed=pair.fixed,
        moving=pair.moving,
        field_of_view_overlap=fixed_grid.share_inside(moving_grid),
        dice=dice,
        displacement_mm=float(np.linalg.norm(shifts, axis=1).mean()) if shared else None,
        # With a single structure, shift and deformation cannot be told apart.
        deformation_mm=float(np.linalg.norm(shifts - shifts.mean(axis=0), axis=1).mean()) if len(shared) > 1 else None,
    )


def label_dice(fixed: sitk.Image, moving: sitk.Image, labels: Collection[int]) -> float | None:
    """Mean Dice of two label maps on one grid over those ``labels`` that occur in either; None when none occurs."""
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(sitk.Cast(fixed, sitk.sitkInt32), sitk.Cast(moving, sitk.sitkInt32))
    present = np.union1d(sitk.GetArrayViewFromImage(fixed), sitk.GetArrayViewFromImage(moving))
    scores = [overlap.GetDiceCoefficient(label) for label in sorted(set(labels) & set(present.astype(int).tolist()))]
    return float(np.mean(scores)) if scores else None


def extract_fingerprint(dataset: Dataset, num_processes: int = 2, earlier: Fingerprint | None = None) -> Fingerprint:
    """Measure a dataset.

    Args:
        dataset: the dataset.
        num_processes: cases that are read at the same time.
        earlier: an earlier fingerprint, whose cases are not read again where their files are the same.

    Raises:
        UserError: an image cannot be used.
    """
    cases: dict[str, CaseFingerprint] = {}
    compared: dict[Pair, PairFingerprint] = {}
    if earlier is not None and (earlier.modalities, earlier.labels) == (dataset.modalities, dataset.labels):
        cases = {
            case.case: case
            for case in earlier.cases
            if case.case in dataset.by_name and case.sources == sources_of(dataset.case(case.case))
        }
        compared = {Pair(p.fixed, p.moving): p for p in earlier.pairs if {p.fixed, p.moving} <= cases.keys()}
    outdated = [case for case in dataset.cases if case.name not in cases]
    measure = partial(measure_case, modalities=dataset.modalities, label_table=dataset.labels)
    cases |= {case.case: case for case in map_in_processes(measure, outdated, num_processes, "Fingerprint")}
    pairs = sample_pairs(dataset)
    missing = [pair for pair in pairs if pair not in compared]
    compare = partial(measure_pair, cases=dataset.by_name, fingerprints=cases, label_table=dataset.labels)
    compared |= zip(missing, map_in_processes(compare, missing, num_processes, "Compare", "pair"), strict=True)
    return summarize(dataset, [cases[case.name] for case in dataset.cases], [compared[pair] for pair in pairs])


def sample_pairs(dataset: Dataset) -> tuple[Pair, ...]:
    """Draw some of the pairs that may be trained on, always the same ones; labelled pairs where there are any."""
    labelled = [case.name for case in dataset.trainable_cases if case.label is not None]
    pairs = pairs_among(dataset, labelled) or pairs_among(dataset, [case.name for case in dataset.trainable_cases])
    return draw_pairs(pairs, SAMPLED_PAIRS, seed=12345)


def summarize(dataset: Dataset, cases: Sequence[CaseFingerprint], pairs: Sequence[PairFingerprint]) -> Fingerprint:
    """Make the fingerprint of a dataset from those of its cases, in the dataset's order, and of pairs."""
    # By modality, and by label in the image's own voxels.
    anisotropy, voxels = defaultdict(list), defaultdict(list)
    for case in cases:
        anisotropy[case.modality].append(max(case.spacing) / min(case.spacing))
        for label, millilitres in case.label_volumes.items():
            voxels[label].append(1000 * millilitres / float(np.prod(case.spacing)))
    # Labels of held-out cases do not count, since these cases are not trained on.
    usable = dataset.trainable_cases
    annotated = [case.annotated_structures(dataset.labels) for case in usable if case.label is not None]
    return Fingerprint(
        dataset_name=dataset.name,
        modalities=dataset.modalities,
        labels=dataset.labels,
        subjects={
            modality: len({case.subject for case in dataset.of_modality(modality)}) for modality in sorted(anisotropy)
        },
        annotated_cases=len(annotated) / max(1, len(usable)),
        annotated_structures={
            label: sum(label in structures for structures in annotated) / max(1, len(usable))
            for label in dataset.labels
        },
        anisotropy={modality: float(np.median(ratios)) for modality, ratios in sorted(anisotropy.items())},
        structure_voxels={label: float(np.median(sizes)) for label, sizes in sorted(voxels.items())},
        cases=list(cases),
        pairs=list(pairs),
    )


def read_fingerprint(path: Path) -> Fingerprint:
    """Read a fingerprint's file. Raises UserError when it is missing, and UnreadableFile for another version."""
    try:
        return Fingerprint.model_validate(read_json(path))
    except ValidationError as error:
        raise UnreadableFile(
            path, f"has another content under '{locate_problem(error)[0]}' than expected", "extract it again"
        ) from error
