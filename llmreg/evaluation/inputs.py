"""What is needed to score a folder of predictions: fields, label maps, names of labels, annotated labels, landmarks."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from llmreg.data.dataset import Dataset, load_dataset
from llmreg.errors import BadArgument, MissingFile, NotPrepared, UnreadableFile, UserError
from llmreg.images.formats import DEFAULT_ENDING
from llmreg.images.landmarks import LANDMARK_ENDINGS, Convention
from llmreg.predictions import PREDICT_FILE, PredictedPair, predictions_digest, read_predictions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairFiles:
    """One pair to score.

    Attributes:
        pair_id: names the pair.
        fixed: name of the fixed case.
        moving: name of the moving case.
        field: the displacement field's file.
        frames: of the fixed and of the moving image, their label maps, or the images where there are landmarks alone.
        labelled: whether these are label maps.
        prealignment: file of the affine part of the field, where there is one.
        format: of the field, one of :data:`llmreg.images.formats.FIELD_FORMATS`.
        labels: id -> name; those of the two label maps when None.
        annotated: the ids that both images have; all of them when None.
        keypoints: files of the fixed and of the moving image's landmarks.
        convention: of the coordinates in these, where it is certain.
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
class EvaluationInputs:
    """What there is to score.

    Attributes:
        name: of the dataset that the label maps belong to, else of the predictions folder.
        pairs: the pairs to score.
        failed: ids of the pairs that could not be registered, and have no scores.
        sha256: of ``predict.json``, so that scores of other predictions are noticed.
        peak_memory: of the prediction, GiB: ``peak_memory_gb``, and ``peak_gpu_memory_gb`` where it used a GPU.
    """

    name: str
    pairs: tuple[PairFiles, ...]
    failed: tuple[str, ...]
    sha256: str
    peak_memory: dict[str, float]


def find_inputs(folder: Path, labels: Path | None, keypoints: Path | None = None) -> EvaluationInputs:
    """Find the files of all pairs of ``predict.json``.

    A label map is ``<labels>/<case name>.nii.gz``, else the one that ``predict.json`` names. Label names and the
    annotated labels come from the ``dataset.json`` in the label maps' folder or the one above it, if there is one.
    Landmarks are ``<keypoints>/<case name>`` with one of :data:`llmreg.images.landmarks.LANDMARK_ENDINGS`, else those
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
    if labels is not None and not labels.is_dir():
        raise MissingFile(labels, "name the folder that holds the label maps")
    if keypoints is not None and not keypoints.is_dir():
        raise MissingFile(keypoints, "name the folder that holds the landmarks")

    dataset = labels_dataset = None if labels is None else _find_dataset_around(labels)
    pairs = []
    for pair in predictions.pairs:
        if pair.field is None:
            raise BadArgument(
                "outputs", f"{folder} holds no field of {pair.pair_id}: predict again, and save the field."
            )
        landmarks, convention = _find_keypoints(pair, keypoints, labels_dataset)
        labelled = True
        try:
            fixed, moving = (_find_label_map(pair, role, labels, dataset) for role in ("fixed", "moving"))
            if labels is None and dataset is None:
                dataset = _find_dataset_around(fixed.parent)
        except UserError as error:
            if landmarks is None:
                raise
            log.warning("%s: its landmarks alone are scored. %s", pair.pair_id, error)
            labelled = False
            fixed, moving = _find_image(pair, "fixed_path"), _find_image(pair, "moving_path")
        remedy = f"predict {pair.pair_id} again"
        pairs.append(
            PairFiles(
                pair_id=pair.pair_id,
                fixed=pair.fixed,
                moving=pair.moving,
                field=_check_exists(folder / pair.field, remedy),
                frames=(fixed, moving),
                labelled=labelled,
                prealignment=_check_exists(folder / pair.prealignment, remedy) if pair.prealignment else None,
                format=pair.format,
                labels=dataset.labels if dataset else None,
                annotated=_intersect_annotated(dataset, pair) if dataset else None,
                keypoints=landmarks,
                convention=convention,
                seconds=pair.seconds,
            )
        )
    if keypoints is not None and all(pair.keypoints is None for pair in pairs):
        raise BadArgument(
            "keypoints",
            f"{keypoints} holds no landmarks of any pair: name the files {pairs[0].fixed}.csv, {pairs[0].moving}.csv.",
        )
    memory = {"peak_memory_gb": predictions.peak_memory_gb, "peak_gpu_memory_gb": predictions.peak_gpu_memory_gb}
    return EvaluationInputs(
        name=dataset.name if dataset else folder.resolve().name,
        pairs=tuple(pairs),
        failed=tuple(pair.pair_id for pair in predictions.failed),
        sha256=predictions_digest(folder),
        peak_memory={name: value for name, value in memory.items() if value is not None},
    )


def _check_exists(path: Path, remedy: str) -> Path:
    if not path.is_file():
        raise MissingFile(path, remedy)
    return path


def _find_image(pair: PredictedPair, attribute: str) -> Path:
    path = pair.path(attribute)
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


def _find_label_map(pair: PredictedPair, role: str, folder: Path | None, dataset: Dataset | None) -> Path:
    """The label map of a pair's ``fixed`` or ``moving`` case."""
    case, recorded = getattr(pair, role), pair.path(f"{role}_label")
    file, places = f"{case}{DEFAULT_ENDING}", [recorded]
    if folder is not None:
        cases = () if dataset is None else dataset.cases
        listed = [entry.label for entry in cases if entry.name == case]
        places = [folder / file, *listed, folder / "labelsTr" / file, recorded]
    candidates = [place for place in places if place is not None]
    if not candidates:
        raise BadArgument(
            "labels", f"{case} has no label map in {PREDICT_FILE}: name a folder with {file}, or landmarks."
        )
    path = next(filter(Path.is_file, candidates), None)
    if path is None:
        raise MissingFile(candidates[0], f"add the label map of {case}, or name another folder of label maps")
    return path


def _find_keypoints(
    pair: PredictedPair, folder: Path | None, dataset: Dataset | None
) -> tuple[tuple[Path, Path] | None, Convention | None]:
    """The landmarks of both images, and the convention of their coordinates, where that is certain."""
    fixed, moving = (_find_landmark_file(pair, role, folder) for role in ("fixed", "moving"))
    if fixed is not None and moving is not None:
        return (fixed, moving), None
    files = {} if dataset is None else {case.name: case.keypoints for case in dataset.cases}
    dataset_fixed, dataset_moving = files.get(pair.fixed), files.get(pair.moving)
    if dataset_fixed is not None and dataset_moving is not None:
        # Learn2Reg's landmarks count voxels.
        return (dataset_fixed, dataset_moving), "voxel"
    if fixed is not None or moving is not None:
        lacking = pair.fixed if fixed is None else pair.moving
        log.warning("%s: no TRE, because %s has no landmarks.", pair.pair_id, lacking)
    return None, None


def _find_landmark_file(pair: PredictedPair, role: str, folder: Path | None) -> Path | None:
    case, recorded = getattr(pair, role), pair.path(f"{role}_points")
    candidates = [] if folder is None else [folder / f"{case}{suffix}" for suffix in LANDMARK_ENDINGS]
    candidates += [] if recorded is None else [recorded]
    path = next(filter(Path.is_file, candidates), None)
    if recorded is not None and path is None:
        raise MissingFile(recorded, f"add the landmarks of {pair.pair_id}, or name a folder of landmarks")
    return path


def _intersect_annotated(dataset: Dataset, pair: PredictedPair) -> frozenset[int] | None:
    """The labels that were annotated in both cases; None where the dataset says nothing about either."""
    annotated = {case.name: case.annotated_labels for case in dataset.cases}
    listed = [ids for ids in (annotated.get(pair.fixed), annotated.get(pair.moving)) if ids is not None]
    return frozenset.intersection(*map(frozenset, listed)) if listed else None
