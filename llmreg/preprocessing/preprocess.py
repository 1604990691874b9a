"""Bringing cases into the common frame, for training and prediction alike, and storing them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from llmreg.data.case_images import read_case
from llmreg.data.dataset import Case, Dataset
from llmreg.data.provenance import sources_of
from llmreg.data.splits import Split
from llmreg.engine.prealignment import CaseTransform, align_case, lies_in_frame
from llmreg.engine.templates import Template, place_case
from llmreg.errors import UserError
from llmreg.files import atomic_write, read_json, write_json
from llmreg.geometry.field import resample_image, volume_of
from llmreg.geometry.grid import Grid
from llmreg.geometry.io import array_to_image, image_to_array, read_image, write_image
from llmreg.plans.plans import Normalization, Plans
from llmreg.preprocessing.dataset_templates import learned, set_without, templates_in
from llmreg.preprocessing.fingerprint import annotated_in
from llmreg.preprocessing.normalization import normalized
from llmreg.workers import in_parallel

log = logging.getLogger(__name__)

REFERENCE_FILE = "reference.nii.gz"
# As small as at blosc2's default level to a percent, written six times as fast.
_COMPRESSION = {"codec": blosc2.Codec.ZSTD, "clevel": 1, "filters": [blosc2.Filter.SHUFFLE]}


@dataclass(frozen=True, eq=False)
class FramedCase:
    """A case in the common frame.

    Attributes:
        image: float32 in [0, 1], (z, y, x) on the frame.
        seen: bool, (z, y, x): what lies in the case's field of view.
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
        template: of the case's modality, where the plans' pre-alignment uses one.
        mask: the user's foreground on the image's grid, instead of one found in the image.
        transform: the case transform itself, where the user knows it.
    """

    reference: sitk.Image | None = None
    template: Template | None = None
    mask: sitk.Image | None = None
    transform: CaseTransform | None = None


def volumes_folder(preprocessed: Path, plans: Plans) -> Path:
    """Where the volumes of these plans lie, in a dataset's preprocessed folder."""
    return preprocessed / f"volumes_{plans.volumes_digest()}"


def bring_into_frame(
    stored: sitk.Image, normalization: Normalization, plans: Plans, guides: PlacementHints, path: Path | str
) -> FramedCase:
    """Normalise an image and bring it into the frame: the one way for preprocessing and prediction.

    Args:
        stored: the image as read.
        normalization: its modality's plan.
        plans: the dataset's plans.
        guides: what it is placed by.
        path: where the image was read, or what else errors may call it.

    Raises:
        UserError: nothing of the image lies in the frame.
    """
    normal, foreground = normalized(stored, normalization, guides.mask)
    # With its axes turned: how they are stored changes nothing in space.
    grid, plan = Grid.from_image(normal), plans.prealignment
    if guides.transform is not None:
        transform = guides.transform
    elif guides.template is not None and not lies_in_frame(grid, plan):
        transform = place_case(normal, foreground.centre, guides.template)
    else:
        transform = align_case(normal, foreground.centre, plans.frame, plan, guides.reference)
    framed = resample_image(normal, plans.frame, transform.to_sitk())
    seen = image_to_array(resample_image(volume_of(grid), plans.frame, transform.to_sitk(), "nearest")) > 0
    if not seen.any():
        raise UserError(
            f"No part of {path} lies in the common frame of the plans: check where it lies in space, or plan with "
            "another prealignment.method."
        )
    return FramedCase(image_to_array(framed), seen, transform)


def preprocess_case(
    case: Case, plans: Plans, folder: Path, guides: PlacementHints, guided_by: dict[str, Any]
) -> FramedCase:
    """Write ``<case>.b2nd``, ``<case>_seen.b2nd``, ``<case>_seg.b2nd`` when annotated and ``<case>.json``.

    Args:
        case: whose images.
        plans: how.
        folder: where to.
        guides: what the case is placed by, but for its own mask.
        guided_by: what the guides were made of, for the record.
    """
    images = read_case(case, plans.labels)
    guides = replace(guides, mask=images.mask)
    framed = bring_into_frame(images.image, plans.normalization[case.modality], plans, guides, case.image)
    # Removed first: its presence says that the volumes are whole.
    (folder / f"{case.name}.json").unlink(missing_ok=True)
    _write_volume(folder / f"{case.name}.b2nd", framed.image)
    _write_volume(folder / f"{case.name}_seen.b2nd", framed.seen.astype(np.uint8))
    if images.label is not None:
        seg = image_to_array(resample_image(images.label, plans.frame, framed.transform.to_sitk(), "nearest"))
        _write_volume(folder / f"{case.name}_seg.b2nd", seg.astype(np.uint8 if max(plans.labels) < 256 else np.int32))
    write_json(
        folder / f"{case.name}.json",
        {
            "case": case.name,
            "image": str(case.image),
            "grid": Grid.from_image(images.image).to_dict(),
            "frame": plans.frame.to_dict(),
            "transform": framed.transform.to_dict(),
            "annotated_labels": _annotated(case, plans),
            "sources": sources_of(case),
            "guided_by": guided_by,
        },
    )
    return framed


def _annotated(case: Case, plans: Plans) -> list[int]:
    """The structures known in a case; none without a label map."""
    if case.label is None:
        return []
    return sorted(annotated_in(case, plans.labels))


def _preprocess_to_reference(
    case: Case, plans: Plans, folder: Path, guided_by: dict[str, Any], splits: Sequence[Split]
) -> None:
    template = templates_in(folder, set_without(case.name, splits)).get(case.modality)
    preprocess_case(case, plans, folder, PlacementHints(read_reference(folder, plans), template), guided_by)


def _is_current(case: Case, plans: Plans, folder: Path, guided_by: dict[str, Any]) -> bool:
    path = folder / f"{case.name}.json"
    kinds = ("", "_seen") if case.label is None else ("", "_seen", "_seg")
    if not all(file.exists() for file in (path, *(folder / f"{case.name}{kind}.b2nd" for kind in kinds))):
        return False
    record = read_json(path)
    now = {"sources": sources_of(case), "guided_by": guided_by, "annotated_labels": _annotated(case, plans)}
    return {key: record.get(key) for key in now} == now


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
    guided_by: dict[str, Any] = {"reference": sources_of(first)}
    if plans.prealignment.method == "template":
        guided_by["templates"] = learned(dataset, plans, splits, folder, num_processes)
    if not (folder / REFERENCE_FILE).exists() or not _is_current(first, plans, folder, guided_by):
        # Removed first: others must not be aligned to an earlier one.
        (folder / REFERENCE_FILE).unlink(missing_ok=True)
        template = templates_in(folder, set_without(first.name, splits)).get(first.modality)
        framed = preprocess_case(first, plans, folder, PlacementHints(template=template), guided_by)
        write_image(array_to_image(framed.image, plans.frame), folder / REFERENCE_FILE)
    waiting = [case for case in dataset.cases if not _is_current(case, plans, folder, guided_by)]
    if len(waiting) < len(dataset.cases):
        log.info("%d of %d cases are preprocessed already.", len(dataset.cases) - len(waiting), len(dataset.cases))
    work = partial(_preprocess_to_reference, plans=plans, folder=folder, guided_by=guided_by, splits=splits)
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
    with atomic_write(path) as temporary:
        # blosc2 is asked to create the file itself.
        temporary.unlink()
        blosc2.asarray(np.ascontiguousarray(array), urlpath=str(temporary), mode="w", cparams=_COMPRESSION)


def read_volume(path: Path) -> NDArray[Any]:
    """A preprocessed volume (z, y, x). Raises UserError when it is not there."""
    if not path.exists():
        raise UserError(f"{path} does not exist: run llmreg_plan_and_preprocess first.")
    return np.asarray(blosc2.open(str(path), mode="r", mmap_mode="r")[:])


def read_case_record(folder: Path, case: str) -> dict[str, Any]:
    content: dict[str, Any] = read_json(folder / f"{case}.json")
    return content
