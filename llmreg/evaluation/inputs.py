"""Finds what is needed to score a predictions folder: fields, label maps, label names, annotated labels, landmarks."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from llmreg.data.dataset import Dataset, load_dataset
from llmreg.errors import UserError
from llmreg.evaluation.keypoints import SUFFIXES
from llmreg.files import file_digest, read_json
from llmreg.geometry.points import Convention
from llmreg.inference.pair_inputs import PREDICT_FILE

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairFiles:
    """One pair to score.

    Attributes:
        format: of the field, one of :data:`llmreg.geometry.formats.FORMATS`.
        frames: of the fixed and of the moving image, their label maps, or the images where there are landmarks alone.
        labelled: whether these are label maps.
        labels: id -> name; None: the ids found.
        annotated: the ids that both images have.
        keypoints: files of the fixed and of the moving image's landmarks.
        convention: of the coordinates in these, where it is known.
        seconds: what the prediction took.
    """

    pair_id: str
    fixed: str
    moving: str
    field: Path
    frames: tuple[Path, Path]
    labelled: bool = True
    prealignment: Path | None = None
    format: str = "itk"
    labels: dict[int, str] | None = None
    annotated: frozenset[int] | None = None
    keypoints: tuple[Path, Path] | None = None
    convention: Convention | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Found:
    """What there is to score.

    Attributes:
        name: of the dataset that the label maps belong to, else of the predictions folder.
        failed: ids of the pairs that could not be registered, which no score knows of.
        sha256: of ``predict.json``, so that scores of other predictions are noticed.
        peak_memory: of the prediction, GiB: ``peak_memory_gb``, and ``peak_gpu_memory_gb`` where it used a GPU.
    """

    name: str
    pairs: tuple[PairFiles, ...]
    failed: tuple[str, ...]
    sha256: str
    peak_memory: dict[str, float]


class _Pair(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    pair_id: str
    fixed: str
    moving: str
    field: str | None = None
    format: str = "itk"
    fixed_label: str | None = None
    moving_label: str | None = None
    fixed_path: str | None = None
    moving_path: str | None = None
    prealignment: str | None = None
    fixed_points: str | None = None
    moving_points: str | None = None
    seconds: float | None = None


class _Failed(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    pair_id: str


class _Predictions(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    pairs: list[_Pair]
    failed: list[_Failed] = []
    peak_memory_gb: float | None = None
    peak_gpu_memory_gb: float | None = None


def find_pairs(predictions: Path, labels: Path | None, keypoints: Path | None = None) -> Found:
    """All pairs of ``predict.json`` with their files.

    A label map is ``<labels>/<case name>.nii.gz``, else the one that ``predict.json`` names. Label names and the
    annotated labels come from the ``dataset.json`` in the label maps' folder or the one above it, if there is one.
    Landmarks are ``<keypoints>/<case name>`` with one of :data:`llmreg.evaluation.keypoints.SUFFIXES`, else those that
    ``predict.json`` names, else, in voxels, those of the dataset in ``labels``; pairs may have none. Where a pair's
    label maps are not to be found, landmarks are enough.

    Raises:
        UserError: for the first file that is missing, or a ``predict.json`` that is not ours.
    """
    if not predictions.is_dir():
        raise UserError(f"The predictions folder {predictions} does not exist: run llmreg_predict first.")
    file = predictions / PREDICT_FILE
    if not file.is_file():
        raise UserError(f"{file} does not exist: give -i the folder that llmreg_predict wrote.")
    try:
        made = _Predictions.model_validate(read_json(file))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(
            f"{file} is not as llmreg_predict writes it ('{where}': {first['msg']}): run the prediction again."
        ) from None
    listed, failed = made.pairs, made.failed
    if not listed:
        raise UserError(f"{file} lists no pairs: run llmreg_predict on at least one pair.")
    if labels is not None and not labels.is_dir():
        raise UserError(f"The labels folder {labels} does not exist: give -l the folder with the label maps.")
    if keypoints is not None and not keypoints.is_dir():
        raise UserError(f"The folder {keypoints} does not exist: give --keypoints the folder with the landmarks.")

    dataset = _dataset_near(labels) if labels is not None else None
    found = []
    for pair in listed:
        if pair.field is None:
            raise UserError(f"{predictions} holds no field of {pair.pair_id}: predict again, with field among --save.")
        field = _existing(predictions / pair.field, pair.pair_id, "run the prediction again")
        before = predictions / pair.prealignment if pair.prealignment else None
        if before is not None:
            _existing(before, pair.pair_id, "run the prediction again")
        landmarks, convention = _keypoints(predictions, pair, keypoints, dataset if labels is not None else None)
        labelled = True
        try:
            fixed = _label_map(predictions, pair.fixed, pair.fixed_label, labels, dataset)
            moving = _label_map(predictions, pair.moving, pair.moving_label, labels, dataset)
            dataset = dataset or (_dataset_near(fixed.parent) if labels is None else None)
        except UserError as error:
            if landmarks is None:
                raise
            log.warning("%s: its landmarks alone are scored. %s", pair.pair_id, error)
            labelled = False
            fixed, moving = _image(predictions, pair, pair.fixed_path), _image(predictions, pair, pair.moving_path)
        found.append(
            PairFiles(
                pair_id=pair.pair_id,
                fixed=pair.fixed,
                moving=pair.moving,
                field=field,
                frames=(fixed, moving),
                labelled=labelled,
                prealignment=before,
                format=pair.format,
                labels=dataset.labels if dataset else None,
                annotated=_annotated(dataset, pair) if dataset else None,
                keypoints=landmarks,
                convention=convention,
                seconds=pair.seconds,
            )
        )
    if keypoints is not None and all(pair.keypoints is None for pair in found):
        raise UserError(
            f"{keypoints} holds no landmarks of any pair: name the files {listed[0].fixed}.csv, {listed[0].moving}.csv."
        )
    used = {"peak_memory_gb": made.peak_memory_gb, "peak_gpu_memory_gb": made.peak_gpu_memory_gb}
    return Found(
        name=dataset.name if dataset else predictions.resolve().name,
        pairs=tuple(found),
        failed=tuple(pair.pair_id for pair in failed),
        sha256=file_digest(file),
        peak_memory={name: value for name, value in used.items() if value is not None},
    )


def _existing(path: Path, pair_id: str, remedy: str) -> Path:
    if not path.is_file():
        raise UserError(f"{path} of the pair {pair_id} does not exist: {remedy}.")
    return path


def _image(predictions: Path, pair: _Pair, named: str | None) -> Path:
    if named is None:
        raise UserError(f"{predictions / 'predict.json'} does not name the images of {pair.pair_id}: give label maps.")
    return _existing(predictions / named, pair.pair_id, "put the image back, or give label maps with -l")


def _dataset_near(folder: Path) -> Dataset | None:
    # Links may lie in a dataset, or lead into one.
    named, real = Path(os.path.abspath(folder)), folder.resolve()
    places = (named, named.parent, real, real.parent)
    problem: UserError | None = None
    for place in dict.fromkeys(places):
        if (place / "dataset.json").is_file() or len(list(place.glob("*_dataset.json"))) == 1:
            try:
                return load_dataset(place)
            except UserError as error:
                problem = problem or error
    if problem is not None:
        log.warning("Label names are unknown, and all labels count as annotated everywhere: %s", problem)
    return None


def _label_map(predictions: Path, case: str, named: str | None, labels: Path | None, dataset: Dataset | None) -> Path:
    places = []
    if labels is not None:
        listed = () if dataset is None else dataset.cases
        places = [labels / f"{case}.nii.gz"]
        places += [known.label for known in listed if known.name == case and known.label is not None]
        places.append(labels / "labelsTr" / f"{case}.nii.gz")
    if named:
        # A relative path in predict.json means the predictions folder; joining leaves an absolute one as it is.
        places.append(predictions / named)
    for place in places:
        if place.is_file():
            return place
    if not places:
        raise UserError(
            f"{case} has no label map in predict.json: name the folder that holds {case}.nii.gz with -l, or that of "
            "landmarks with --keypoints."
        )
    raise UserError(f"{places[0]} does not exist, so {case} cannot be scored: add the label map or correct -l.")


def _keypoints(
    predictions: Path, pair: _Pair, folder: Path | None, dataset: Dataset | None
) -> tuple[tuple[Path, Path] | None, Convention | None]:
    """The landmarks of both images, and what their coordinates are, where that is known."""
    found = []
    for case, named in ((pair.fixed, pair.fixed_points), (pair.moving, pair.moving_points)):
        places = [] if folder is None else [folder / f"{case}{suffix}" for suffix in SUFFIXES]
        if named:
            places.append(predictions / named)
        there = next((place for place in places if place.is_file()), None)
        if named and there is None:
            raise UserError(
                f"{places[-1]} of the pair {pair.pair_id} does not exist: add the landmarks, or --keypoints."
            )
        found.append(there)
    fixed, moving = found
    if fixed is not None and moving is not None:
        return (fixed, moving), None
    known = {} if dataset is None else {case.name: case.keypoints for case in dataset.cases}
    of_dataset = known.get(pair.fixed), known.get(pair.moving)
    if of_dataset[0] is not None and of_dataset[1] is not None:
        # As the format's challenge has them.
        return (of_dataset[0], of_dataset[1]), "voxel"
    if fixed is not None or moving is not None:
        lacking = pair.fixed if fixed is None else pair.moving
        log.warning("%s: no TRE, because %s has no landmarks.", pair.pair_id, lacking)
    return None, None


def _annotated(dataset: Dataset, pair: _Pair) -> frozenset[int] | None:
    known = {case.name: case.annotated_labels for case in dataset.cases}
    listed = [known[name] for name in (pair.fixed, pair.moving) if known.get(name) is not None]
    return frozenset.intersection(*(frozenset(ids or ()) for ids in listed)) if listed else None
