"""Bringing cases into the common frame, for training and prediction alike, and storing them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from llmreg.dataset import Case, Dataset
from llmreg.errors import UserError
from llmreg.files import read_json, write_json, written_whole
from llmreg.geometry.field import resample_image
from llmreg.geometry.grid import Grid
from llmreg.geometry.io import array_of, image_from, read_image, write_image
from llmreg.preprocessing.cases import read_case
from llmreg.preprocessing.normalization import normalized
from llmreg.preprocessing.placement import learned, set_without, templates_in
from llmreg.preprocessing.plans import Normalization, Plans
from llmreg.preprocessing.prealignment import CaseTransform, align_case, foreground_centre, lies_in_frame
from llmreg.preprocessing.splits import Split
from llmreg.preprocessing.templates import Template, place_case
from llmreg.workers import in_parallel

REFERENCE_FILE = "reference.nii.gz"
Sources = dict[str, Any]


@dataclass(frozen=True, eq=False)
class FramedCase:
    """A case in the common frame.

    Attributes:
        image: float32 in [0, 1], (z, y, x) on the frame.
        transform: frame point -> case point.
    """

    image: NDArray[np.float32]
    transform: CaseTransform


def volumes_folder(preprocessed: Path, plans: Plans) -> Path:
    """Where the volumes of these plans lie, in a dataset's preprocessed folder."""
    return preprocessed / f"volumes_{plans.volumes_digest()}"


def bring_into_frame(
    stored: sitk.Image,
    normalization: Normalization,
    plans: Plans,
    reference: sitk.Image | None,
    path: Path,
    template: Template | None = None,
) -> FramedCase:
    """Normalise an image and bring it into the frame: the one way for preprocessing and prediction.

    Args:
        stored: the image as read.
        normalization: its modality's plan.
        plans: the dataset's plans.
        reference: the reference case in the frame (see :func:`read_reference`), None for that case itself.
        path: where the image was read, for the error.
        template: of its modality, where the plans' pre-alignment uses one.

    Raises:
        UserError: nothing of the image lies in the frame.
    """
    normal, mask = normalized(stored, normalization)
    grid, plan = Grid.from_image(stored), plans.prealignment
    if template is not None and not lies_in_frame(grid, plan):
        transform = place_case(normal, foreground_centre(mask, Grid.from_image(normal)), template)
    else:
        transform = align_case(normal, mask, grid, plans.frame, plan, reference)
    framed = resample_image(normal, plans.frame, transform.to_sitk())
    if sitk.GetArrayViewFromImage(framed).max() == 0:
        raise UserError(
            f"No part of {path} lies in the common frame of the plans: check where it lies in space, or plan with "
            "another prealignment.method."
        )
    return FramedCase(array_of(framed), transform)


def preprocess_case(
    case: Case, plans: Plans, folder: Path, reference: sitk.Image | None, reference_sources: Sources, templates: str
) -> FramedCase:
    """Write ``<case>.b2nd``, ``<case>_seg.b2nd`` when annotated and ``<case>.json`` into ``folder``.

    ``templates`` names the set that was learned without the case.
    """
    images = read_case(case, plans.labels)
    template = templates_in(folder, templates).get(case.modality)
    framed = bring_into_frame(images.image, plans.normalization[case.modality], plans, reference, case.image, template)
    # Removed first: its presence says that the volumes are whole.
    (folder / f"{case.name}.json").unlink(missing_ok=True)
    _write_volume(folder / f"{case.name}.b2nd", framed.image)
    if images.label is not None:
        seg = array_of(resample_image(images.label, plans.frame, framed.transform.to_sitk(), "nearest"))
        _write_volume(folder / f"{case.name}_seg.b2nd", seg.astype(np.uint8 if max(plans.labels) < 256 else np.int32))
    write_json(
        folder / f"{case.name}.json",
        {
            "case": case.name,
            "image": str(case.image),
            "grid": Grid.from_image(images.image).to_dict(),
            "frame": plans.frame.to_dict(),
            "transform": framed.transform.to_dict(),
            "annotated_labels": _listed(case.annotated_labels),
            "sources": _sources(case),
            "reference_sources": reference_sources,
        },
    )
    return framed


def _preprocess_to_reference(
    case: Case, plans: Plans, folder: Path, reference_sources: Sources, splits: Sequence[Split]
) -> None:
    reference = read_reference(folder, plans)
    preprocess_case(case, plans, folder, reference, reference_sources, set_without(case.name, splits))


def _sources(case: Case) -> Sources:
    """What a case's volumes were made of: when it changes, they are made again."""
    files = {"image": case.image, "label": case.label}
    return {role: [path.stat().st_size, path.stat().st_mtime_ns] for role, path in files.items() if path is not None}


def _is_current(case: Case, folder: Path, reference_sources: Sources) -> bool:
    path = folder / f"{case.name}.json"
    if not path.exists():
        return False
    record = read_json(path)
    same_labels = record["annotated_labels"] == _listed(case.annotated_labels)
    return bool(
        record["sources"] == _sources(case) and record["reference_sources"] == reference_sources and same_labels
    )


def _listed(labels: tuple[int, ...] | None) -> list[int] | None:
    return None if labels is None else list(labels)


def preprocess(
    dataset: Dataset, plans: Plans, preprocessed: Path, num_processes: int = 2, splits: Sequence[Split] = ()
) -> Path:
    """Preprocess every case that is not there yet or has changed since. Returns the folder of the volumes.

    Args:
        dataset: whose cases.
        plans: how.
        preprocessed: the dataset's preprocessed folder.
        num_processes: cases at the same time.
        splits: where the plans use templates, a case that a fold holds out is placed by those learned without it.
    """
    folder = volumes_folder(preprocessed, plans)
    first = dataset.case(plans.prealignment.reference_case)
    sources = _sources(first)
    if plans.prealignment.method == "template":
        sources["templates"] = learned(dataset, plans, splits, folder, num_processes)
    if not (folder / REFERENCE_FILE).exists() or not _is_current(first, folder, sources):
        framed = preprocess_case(first, plans, folder, None, sources, set_without(first.name, splits))
        write_image(image_from(framed.image, plans.frame), folder / REFERENCE_FILE)
    waiting = [case for case in dataset.cases if not _is_current(case, folder, sources)]
    work = partial(_preprocess_to_reference, plans=plans, folder=folder, reference_sources=sources, splits=splits)
    for _ in in_parallel(work, waiting, num_processes, "Preprocess"):
        pass
    return folder


def read_reference(folder: Path, plans: Plans) -> sitk.Image:
    """The reference case in the frame, from a folder of volumes or a model folder."""
    image = sitk.Cast(read_image(folder / REFERENCE_FILE), sitk.sitkFloat32)
    if not Grid.from_image(image).same_as(plans.frame, tolerance=0.1):
        raise UserError(f"{folder / REFERENCE_FILE} does not lie in the plans' frame: preprocess the dataset again.")
    return image


def _write_volume(path: Path, array: NDArray[Any]) -> None:
    with written_whole(path) as temporary:
        # blosc2 is asked to create the file itself.
        temporary.unlink()
        blosc2.asarray(np.ascontiguousarray(array), urlpath=str(temporary), mode="w")


def read_volume(path: Path) -> NDArray[Any]:
    """A preprocessed volume (z, y, x). Raises UserError when it is not there."""
    if not path.exists():
        raise UserError(f"{path} does not exist: run llmreg_plan_and_preprocess first.")
    return np.asarray(blosc2.open(str(path), mode="r")[:])


def read_case_record(folder: Path, case: str) -> dict[str, Any]:
    content: dict[str, Any] = read_json(folder / f"{case}.json")
    return content
