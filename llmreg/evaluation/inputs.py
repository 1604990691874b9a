"""What is needed to score a folder of predictions: fields, label maps, names of labels, annotated labels, landmarks."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llmreg.data.dataset import Case, Dataset, load_dataset
from llmreg.errors import BadArgument, MissingFile, MissingOutput, NotPrepared, UnreadableFile, UserError
from llmreg.files import file_digest
from llmreg.images.formats import DEFAULT_ENDING
from llmreg.images.landmarks import LANDMARK_ENDINGS, Convention
from llmreg.predictions import PREDICT_FILE, PredictedPair, Predictions, read_predictions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairFiles:
    """One pair to score.

    Attributes:
        prediction: the pair in ``predict.json``.
        field: the displacement field's file.
        frames: of the fixed and of the moving image, their label maps, or the images where there are landmarks alone.
        labelled: whether these are label maps.
        prealignment: file of the affine part of the field, where there is one.
        labels: id -> name; those of the two label maps when None.
        annotated: the ids that both images have; all of them when None.
        landmarks: files of the fixed and of the moving image's landmarks.
        convention: of the coordinates in these, where it is certain.
    """

    prediction: PredictedPair
    field: Path
    frames: tuple[Path, Path]
    labelled: bool
    prealignment: Path | None
    labels: dict[int, str] | None
    annotated: frozenset[int] | None
    landmarks: tuple[Path, Path] | None
    convention: Convention | None


@dataclass(frozen=True)
class EvaluationInputs:
    """What there is to score.

    Attributes:
        name: of the dataset that the label maps belong to, else of the predictions folder.
        pairs: the pairs to score.
        predictions: the content of ``predict.json``, which also lists the pairs that failed and have no scores.
        sha256: of ``predict.json``, so that scores of other predictions are noticed.
    """

    name: str
    pairs: tuple[PairFiles, ...]
    predictions: Predictions
    sha256: str


def find_inputs(folder: Path, labels: Path | None, landmarks: Path | None = None) -> EvaluationInputs:
    """Find the files of all pairs of ``predict.json``.

    A label map is ``<labels>/<case name>.nii.gz``, else the one that ``predict.json`` names. Label names and the
    annotated labels come from the ``dataset.json`` in the label maps' folder or the one above it, if there is one.
    Landmarks are ``<landmarks>/<case name>`` with one of :data:`llmreg.images.landmarks.LANDMARK_ENDINGS`, else those
    that ``predict.json`` names, else, in voxels, those of the dataset in ``labels``; pairs may have none. Where a
    pair's label maps are missing, landmarks are enough.

    Raises:
        UserError: for the first file that is missing, or a ``predict.json`` that is not ours.
    """
    if not (folder / PREDICT_FILE).is_file():
        raise NotPrepared(folder / PREDICT_FILE, "predict")
    predictions = read_predictions(folder)
    if not predictions.pairs:
        raise UnreadableFile(folder / PREDICT_FILE, "lists no pairs", "predict at least one pair")
    for place, content in ((labels, "label maps"), (landmarks, "landmarks")):
        if place is not None and not place.is_dir():
            raise MissingFile(place, f"name the folder that holds the {content}")

    dataset = None if labels is None else _find_dataset_around(labels)
    cases = {} if dataset is None else dataset.by_name
    pairs = []
    for pair in predictions.pairs:
        if pair.field is None:
            raise MissingOutput(folder, pair.pair_id, "field")
        landmark_files, convention = _find_landmarks(pair, landmarks, cases)
        labelled = True
        try:
            fixed, moving = (_find_label_map(pair, role, labels, cases) for role in ("fixed", "moving"))
            if labels is None and dataset is None:
                dataset = _find_dataset_around(fixed.parent)
        except UserError as error:
            if landmark_files is None:
                raise
            log.warning("%s: its landmarks alone are scored. %s", pair.pair_id, error)
            labelled = False
            fixed, moving = (_find_image(pair, role) for role in ("fixed", "moving"))
        remedy = f"predict {pair.pair_id} again"
        pairs.append(
            PairFiles(
                prediction=pair,
                field=_check_exists(folder / pair.field, remedy),
                frames=(fixed, moving),
                labelled=labelled,
                prealignment=_check_exists(folder / pair.prealignment, remedy) if pair.prealignment else None,
                labels=dataset.labels if dataset else None,
                annotated=_intersect_annotated(dataset, pair) if dataset else None,
                landmarks=landmark_files,
                convention=convention,
            )
        )
    if landmarks is not None and all(pair.landmarks is None for pair in pairs):
        names = f"{predictions.pairs[0].fixed}.csv, {predictions.pairs[0].moving}.csv"
        raise BadArgument("landmarks", f"{landmarks} holds no landmarks of any pair: name the files {names}.")
    return EvaluationInputs(
        name=dataset.name if dataset else folder.resolve().name,
        pairs=tuple(pairs),
        predictions=predictions,
        sha256=file_digest(folder / PREDICT_FILE),
    )


def _check_exists(path: Path, remedy: str) -> Path:
    if not path.is_file():
        raise MissingFile(path, remedy)
    return path


def _find_image(pair: PredictedPair, role: str) -> Path:
    path = pair.path(f"{role}_path")
    if path is None:
        raise BadArgument("labels", f"{PREDICT_FILE} does not name the images of {pair.pair_id}: give label maps.")
    return _check_exists(path, f"put the image of {pair.pair_id} back, or give label maps")


def _find_dataset_around(folder: Path) -> Dataset | None:
    """The dataset in a folder or in the one above it; links may lie in a dataset, or lead into one."""
    path, target = Path(os.path.abspath(folder)), folder.resolve()
    problems = []
    for candidate in dict.fromkeys((path, path.parent, target, target.parent)):
        if (candidate / "dataset.json").is_file() or len(list(candidate.glob("*_dataset.json"))) == 1:
            try:
                return load_dataset(candidate)
            except UserError as error:
                problems.append(error)
    if problems:
        log.warning("Label names are unknown, and all labels count as annotated everywhere: %s", problems[0])
    return None


def _find_label_map(pair: PredictedPair, role: str, folder: Path | None, cases: Mapping[str, Case]) -> Path:
    """The label map of a pair's ``fixed`` or ``moving`` case; ``cases`` are those of the folder's dataset."""
    case, recorded = getattr(pair, role), pair.path(f"{role}_label")
    file, places = f"{case}{DEFAULT_ENDING}", [recorded]
    if folder is not None:
        listed = cases[case].label if case in cases else None
        places = [folder / file, listed, folder / "labelsTr" / file, recorded]
    candidates = [place for place in places if place is not None]
    if not candidates:
        raise BadArgument(
            "labels", f"{case} has no label map in {PREDICT_FILE}: name a folder with {file}, or landmarks."
        )
    path = next(filter(Path.is_file, candidates), candidates[0])
    return _check_exists(path, f"add the label map of {case}, or name another folder of label maps")


def _find_landmarks(
    pair: PredictedPair, folder: Path | None, cases: Mapping[str, Case]
) -> tuple[tuple[Path, Path] | None, Convention | None]:
    """The landmarks of both images, and the convention of their coordinates, where that is certain."""
    fixed, moving = (_find_landmark_file(pair, role, folder) for role in ("fixed", "moving"))
    if fixed is not None and moving is not None:
        return (fixed, moving), None
    dataset_fixed, dataset_moving = (
        cases[case].landmarks if case in cases else None for case in (pair.fixed, pair.moving)
    )
    if dataset_fixed is not None and dataset_moving is not None:
        # Learn2Reg's landmarks count voxels.
        return (dataset_fixed, dataset_moving), "voxel"
    if fixed is not None or moving is not None:
        case = pair.fixed if fixed is None else pair.moving
        log.warning("%s: no TRE, because %s has no landmarks.", pair.pair_id, case)
    return None, None


def _find_landmark_file(pair: PredictedPair, role: str, folder: Path | None) -> Path | None:
    in_folder = [] if folder is None else [folder / f"{getattr(pair, role)}{ending}" for ending in LANDMARK_ENDINGS]
    path = next(filter(Path.is_file, in_folder), pair.path(f"{role}_points"))
    if path is None:
        return None
    return _check_exists(path, f"add the landmarks of {pair.pair_id}, or name a folder of landmarks")


def _intersect_annotated(dataset: Dataset, pair: PredictedPair) -> frozenset[int] | None:
    """The labels that were annotated in both cases; None where the dataset says nothing about either."""
    annotated = [
        frozenset(case.annotated_labels)
        for case in dataset.cases
        if case.name in (pair.fixed, pair.moving) and case.annotated_labels is not None
    ]
    return frozenset.intersection(*annotated) if annotated else None
