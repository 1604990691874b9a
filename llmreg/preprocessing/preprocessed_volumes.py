"""The preprocessed volumes of a dataset: written case by case where something changed, and read by training."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

from llmreg.data.case_images import read_case, sources_of
from llmreg.data.dataset import Case, Dataset
from llmreg.data.splits import Split
from llmreg.errors import NotPrepared
from llmreg.files import atomic_write, read_json, write_json
from llmreg.geometry.grid import Grid, array_to_image, image_to_array
from llmreg.geometry.resampling import resample_image
from llmreg.images.image_files import write_image
from llmreg.plans.plans import Plans
from llmreg.preprocessing.common_frame import REFERENCE_FILE, bring_into_frame, read_reference
from llmreg.preprocessing.dataset_alignment import name_templates_without, read_template_set, update_templates
from llmreg.workers import map_in_processes

log = logging.getLogger(__name__)

# At this level volumes are as small as at blosc2's default to a percent, and are written six times as fast.
_COMPRESSION = {"codec": blosc2.Codec.ZSTD, "clevel": 1, "filters": [blosc2.Filter.SHUFFLE]}


def volumes_folder(preprocessed: Path, plans: Plans) -> Path:
    """The folder of the volumes of these plans, in a dataset's preprocessed folder."""
    return preprocessed / f"volumes_{plans.volumes_digest()}"


def write_volumes(
    dataset: Dataset, plans: Plans, preprocessed: Path, num_processes: int = 2, splits: Sequence[Split] = ()
) -> Path:
    """Preprocess every case whose volumes are missing or outdated.

    Args:
        dataset: the dataset.
        plans: its plans.
        preprocessed: the dataset's preprocessed folder.
        num_processes: cases that are preprocessed at the same time.
        splits: where the plans use templates, a case that a fold holds out is placed by the templates of that fold.

    Returns:
        The folder of the volumes.
    """
    folder = volumes_folder(preprocessed, plans)
    first = dataset.case(plans.prealignment.reference_case)
    placed_by: dict[str, Any] = {"reference": sources_of(first)}
    if plans.prealignment.uses_templates:
        placed_by["templates"] = update_templates(dataset, plans, splits, folder, num_processes)
    if not (folder / REFERENCE_FILE).exists() or not _is_current(first, plans, folder, placed_by):
        # The old reference is removed first, so that no case is aligned to it if this process is ended here.
        (folder / REFERENCE_FILE).unlink(missing_ok=True)
        write_case(first, plans, folder, placed_by, splits)
    outdated = [case for case in dataset.cases if not _is_current(case, plans, folder, placed_by)]
    if len(outdated) < len(dataset.cases):
        log.info("%d of %d cases are preprocessed already.", len(dataset.cases) - len(outdated), len(dataset.cases))
    work = partial(write_case, plans=plans, folder=folder, placed_by=placed_by, splits=splits)
    for _ in map_in_processes(work, outdated, num_processes, "Preprocess"):
        pass
    return folder


def write_case(case: Case, plans: Plans, folder: Path, placed_by: dict[str, Any], splits: Sequence[Split] = ()) -> None:
    """Write ``<case>.b2nd``, ``<case>_seen.b2nd``, ``<case>_seg.b2nd`` when it is annotated, and ``<case>.json``.

    Of the reference case, which is written first, the image to which others are aligned is written as well.

    Args:
        case: the case.
        plans: the dataset's plans.
        folder: the folder of volumes, in which templates and reference lie.
        placed_by: the files that the case is placed by, for its record.
        splits: as in :func:`write_volumes`.
    """
    images = read_case(case, plans.labels)
    # There is no reference yet when the reference case itself is written.
    reference = read_reference(folder, plans) if (folder / REFERENCE_FILE).exists() else None
    template = read_template_set(folder, name_templates_without(case.name, splits)).get(case.modality)
    framed = bring_into_frame(
        images.image,
        plans.normalization[case.modality],
        plans,
        case.image,
        reference=reference,
        template=template,
        mask=images.mask,
    )
    # The record is removed first and written last: its presence says that the volumes are complete.
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
            **_provenance(case, plans, placed_by),
        },
    )
    if case.name == plans.prealignment.reference_case:
        write_image(array_to_image(framed.image, plans.frame), folder / REFERENCE_FILE)


def _provenance(case: Case, plans: Plans, placed_by: dict[str, Any]) -> dict[str, Any]:
    """What the volumes of a case are made from: they are outdated when it changes."""
    annotated = [] if case.label is None else sorted(case.annotated_structures(plans.labels))
    return {"annotated_labels": annotated, "sources": sources_of(case), "guided_by": placed_by}


def _is_current(case: Case, plans: Plans, folder: Path, placed_by: dict[str, Any]) -> bool:
    kinds = (".json", ".b2nd", "_seen.b2nd") if case.label is None else (".json", ".b2nd", "_seen.b2nd", "_seg.b2nd")
    return all((folder / f"{case.name}{kind}").exists() for kind in kinds) and (
        _provenance(case, plans, placed_by).items() <= read_case_record(folder, case.name).items()
    )


def _write_volume(path: Path, array: NDArray[Any]) -> None:
    with atomic_write(path) as temporary:
        # blosc2 creates the file itself.
        temporary.unlink()
        blosc2.asarray(np.ascontiguousarray(array), urlpath=str(temporary), mode="w", cparams=_COMPRESSION)


def read_volume(path: Path) -> NDArray[Any]:
    """Read a preprocessed volume (z, y, x). Raises NotPrepared when it does not exist."""
    if not path.exists():
        raise NotPrepared(path, "preprocess", dataset=path.parent.parent.name)
    return np.asarray(blosc2.open(str(path), mode="r", mmap_mode="r")[:])


def read_case_record(folder: Path, case: str) -> dict[str, Any]:
    """Read the record that is written beside a case's volumes."""
    return dict(read_json(folder / f"{case}.json"))
