"""Predicting the pairs of a folder or table into another folder: those that it lacks, with a record of each."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from llmreg.devices import peak_memory
from llmreg.errors import BadArgument, HoldsPredictions, MissingFile, OtherPredictions, UserError
from llmreg.files import check_writable, file_digest, image_digest, remove_partial
from llmreg.images.formats import DEFAULT_ENDING, strip_ending
from llmreg.inference.models import Model
from llmreg.inference.pair_inputs import PairInput, find_pairs
from llmreg.inference.pipeline import Outcome, OutputOptions, register_all
from llmreg.inference.predictor import Predictor, RegistrationOptions
from llmreg.inference.registration import OUTPUTS, file_name
from llmreg.plans.plans import PLANS_FILE, read_plans
from llmreg.predictions import (
    PREDICT_FILE,
    FailedPair,
    PairRecord,
    PredictedPair,
    Predictions,
    Provenance,
    read_record,
    record_path,
    write_predictions,
    write_record,
)
from llmreg.text_tables import format_table
from llmreg.training.checkpoints import read_state
from llmreg.version import __version__

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PredictionOptions:
    """Which pairs are predicted, what is written of them, and what happens to predictions that exist.

    Attributes:
        registration: what is done beyond predicting.
        output: what is written of each pair.
        labels: folder with a label map ``<case name>.nii.gz`` for moving images whose pair names none.
        all_pairs: every fixed with every moving image.
        overwrite: replace predictions that the output folder holds.
        resume: leave out pairs that are written already.
        part: of ``parts`` processes that share the pairs, this one's number from 0.
        parts: how many processes there are.
        launched: a launcher started this process, and would start it anew if it ended with an error, so that pairs
            that fail are only logged.
    """

    registration: RegistrationOptions = field(default_factory=RegistrationOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    labels: Path | None = None
    all_pairs: bool = False
    overwrite: bool = False
    resume: bool = False
    part: int = 0
    parts: int = 1
    launched: bool = False


def predict_folder(
    source: Path, folder: Path, model: Model, device: torch.device, options: PredictionOptions
) -> Path | None:
    """Register the pairs of ``source`` and write their outputs and ``predict.json`` to ``folder``.

    A pair that cannot be registered does not stop the others. Processes that share the pairs need not know of each
    other: whichever sees that all pairs are done puts ``predict.json`` together.

    Returns:
        Where ``predict.json`` is; None as long as pairs of other processes are missing.

    Raises:
        UserError: pairs failed, and the others are written.
        HoldsPredictions: ``folder`` holds predictions, and they are neither to be replaced nor to be completed.
        OtherPredictions: those that are to be completed are of another model.
    """
    plans = read_plans(model.folder / PLANS_FILE)
    pairs = [_add_label(pair, options) for pair in find_pairs(source, plans, all_pairs=options.all_pairs)]
    part = pairs[options.part :: options.parts]
    _check_file_names(pairs, options.output.format)
    files = [folder / PREDICT_FILE, *(record_path(folder, pair.name) for pair in part)]
    if not (options.overwrite or options.resume) and any(file.exists() for file in files):
        raise HoldsPredictions(folder)
    provenance = describe_provenance(model, options.registration, options.output)
    if options.parts > 1:
        log.info(
            "This is part %d of %d, counted from 0: %d of %d pairs.", options.part, options.parts, len(part), len(pairs)
        )
    pending = find_pending(part, folder, provenance, options.output.outputs) if options.resume else part
    if pending:
        _predict(Predictor(model, device, options.registration), pending, folder, options.output, provenance)
    return _report(pairs, part, folder, provenance, options)


def _predict(
    predictor: Predictor, pairs: Sequence[PairInput], folder: Path, output: OutputOptions, provenance: Provenance
) -> None:
    check_writable(folder)
    # From here on the folder holds neither the old nor the new set of predictions.
    (folder / PREDICT_FILE).unlink(missing_ok=True)
    for pair in pairs:
        remove_prediction(pair, folder, output.format)
    with logging_redirect_tqdm():
        outcomes = register_all(predictor, pairs, folder, output)
        for pair, outcome in tqdm(outcomes, "Predict", len(pairs), unit="pair"):
            write_record(folder, pair.name, make_record(pair, outcome, provenance, peak_memory(predictor.device)))


def _report(
    pairs: Sequence[PairInput],
    part: Sequence[PairInput],
    folder: Path,
    provenance: Provenance,
    options: PredictionOptions,
) -> Path | None:
    """Log what is done, and write ``predict.json`` when that is everything. Raises UserError when pairs failed."""
    records = {pair: record for pair in pairs if (record := read_record(folder, pair.name)) is not None}
    failed = {pair: record.pair for pair, record in records.items() if isinstance(record.pair, FailedPair)}
    predicted = [
        record.pair
        for pair, record in records.items()
        if isinstance(record.pair, PredictedPair)
        and is_current(pair, record, folder, provenance, options.output.outputs)
    ]
    if predicted:
        log.info("\n%s", format_pairs(predicted))
    missing = len(pairs) - len(predicted) - len(failed)
    if missing:
        log.info("%d of %d pairs are left to other parts, or to a run that resumes this one.", missing, len(pairs))
    else:
        figures = {name for record in records.values() for name in record.memory}
        memory = {name: max(record.memory.get(name, 0.0) for record in records.values()) for name in figures}
        content = provenance.to_json() | memory | {"pairs": predicted, "failed": list(failed.values())}
        write_predictions(folder, Predictions.model_validate(content))
    problem = format_failures([failed[pair] for pair in part if pair in failed], len(part))
    if problem and options.launched:
        log.error("%s", problem)
    elif problem:
        raise UserError(problem)
    return None if missing else folder / PREDICT_FILE


def _add_label(pair: PairInput, options: PredictionOptions) -> PairInput:
    """The pair with its moving label map, where label maps are to be warped. Raises UserError when there is none."""
    if "labels" not in options.output.outputs or pair.moving_label is not None:
        return pair
    if options.labels is None:
        raise BadArgument(
            "labels",
            f"{pair.moving} has no label map to warp: give the folder of label maps, or name the label map in the "
            "column moving_label of a pairs.csv.",
        )
    path = options.labels / f"{strip_ending(pair.moving)}{DEFAULT_ENDING}"
    if not path.is_file():
        raise MissingFile(path, "add the moving image's label map, or leave label maps out")
    return replace(pair, moving_label=path)


def _check_file_names(pairs: Sequence[PairInput], format: str) -> None:
    """Check that no two pairs would be written to one file. Raises UserError when two would."""
    pair_ids: dict[str, str] = {}
    for pair in pairs:
        name = file_name("field", pair.name, format)
        other = pair_ids.setdefault(name, pair.pair_id)
        if other != pair.pair_id:
            raise UserError(
                f"The pairs {other} and {pair.pair_id} would both be {name}: predict them into different folders."
            )


def describe_provenance(model: Model, options: RegistrationOptions, outputs: OutputOptions) -> Provenance:
    """What predicts, and how, for the record."""
    return Provenance(
        llmreg_version=__version__,
        model=f"{model.folder.parent.name}/{model.folder.name}",
        folds=list(model.folds),
        epochs=[read_state(path).epoch for path in model.folds.values()],
        checkpoints=[file_digest(path)[:16] for path in model.folds.values()],
        options=vars(options),
        format=outputs.format,
        label_interpolation=outputs.label_interpolation,
    )


def describe_sources(pair: PairInput) -> dict[str, str]:
    """The pair as JSON; of files, the path and a digest of the content."""
    return {
        key: f"{value.absolute()} {image_digest(value)}" if isinstance(value, Path) else str(value)
        for key, value in vars(pair).items()
    }


def make_record(pair: PairInput, outcome: Outcome, provenance: Provenance, memory: dict[str, float]) -> PairRecord:
    """The record of a pair that was just predicted."""
    return PairRecord(**provenance.to_json(), asked=describe_sources(pair), pair=outcome, memory=memory)


def find_pending(
    pairs: Sequence[PairInput], folder: Path, provenance: Provenance, outputs: Sequence[str]
) -> list[PairInput]:
    """The pairs that are still to be predicted.

    Raises:
        OtherPredictions: another model predicted one of the pairs, or the same in another way.
    """
    records = {pair: read_record(folder, pair.name) for pair in pairs}
    for record in records.values():
        difference = None if record is None else record.difference(provenance)
        if difference is not None:
            raise OtherPredictions(folder, difference)
    return [pair for pair, record in records.items() if not is_current(pair, record, folder, provenance, outputs)]


def is_current(
    pair: PairInput, record: PairRecord | None, folder: Path, provenance: Provenance, outputs: Sequence[str]
) -> bool:
    """Whether a record is of the pair's files as they are now, and everything that is to be written exists."""
    if record is None or not isinstance(record.pair, PredictedPair) or record.difference(provenance) is not None:
        return False
    files = [getattr(record.pair, output) for output in outputs]
    return record.asked == describe_sources(pair) and all(
        file is not None and (folder / file).exists() for file in files
    )


def remove_prediction(pair: PairInput, folder: Path, format: str) -> None:
    """Remove what was written of a pair, whole or in part, so that no old file lies beside the new ones."""
    path, record = record_path(folder, pair.name), read_record(folder, pair.name)
    for file in (path, *(folder / file_name(output, pair.name, format) for output in OUTPUTS)):
        remove_partial(file)
    names = [] if record is None else [getattr(record.pair, output, None) for output in OUTPUTS]
    for file in (*(folder / name for name in names if name), path):
        file.unlink(missing_ok=True)


def format_pairs(pairs: Sequence[PredictedPair]) -> str:
    """A line a pair: how it was placed, how far the network moved it, and how long that took."""
    head = ["pair", "placed by", "mean mm", "most mm", "folded %", "+- mm", "seconds"]
    rows = []
    for pair in pairs:
        placements = [place.stage for place in (pair.fixed_transform, pair.moving_transform) if place is not None]
        figures = (pair.mean_mm, 1), (pair.largest_mm, 1), (pair.folding_percent, 3), (pair.uncertainty_mm, 1)
        numbers = ["" if value is None else f"{value:.{digits}f}" for value, digits in (*figures, (pair.seconds, 1))]
        rows.append([pair.pair_id, ", ".join(placements), *numbers])
    shown = [index for index in range(len(head)) if any(row[index] for row in rows)]
    return format_table([head[index] for index in shown], [[row[index] for index in shown] for row in rows], left=2)


def format_failures(failed: Sequence[FailedPair], pairs: int) -> str:
    """What went wrong, in a sentence a pair; empty when nothing did. ``pairs``: how many there were."""
    if not failed:
        return ""
    if len(failed) == 1:
        return failed[0].failed
    reasons = " ".join(f"{pair.pair_id}: {pair.failed}" for pair in failed[:3])
    ellipsis = " ..." if len(failed) > 3 else ""
    return f"{len(failed)} of {pairs} pairs failed, and the others are written. {reasons}{ellipsis}"
