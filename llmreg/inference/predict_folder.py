"""Predicting the pairs of a folder or table into another folder."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from llmreg.devices import peak_memory
from llmreg.errors import BadArgument, HoldsPredictions, MissingFile, UserError
from llmreg.files import check_writable
from llmreg.images.formats import DEFAULT_ENDING, strip_ending
from llmreg.inference.models import Model
from llmreg.inference.overview import format_failures, format_pairs
from llmreg.inference.pair_inputs import PairInput, find_pairs
from llmreg.inference.pipeline import OutputOptions, register_all
from llmreg.inference.predictor import Predictor, RegistrationOptions
from llmreg.inference.registration import file_name
from llmreg.inference.resume import describe_provenance, find_pending, is_current, make_record, remove_prediction
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
    if not (options.overwrite or options.resume) and _holds_predictions(folder, part):
        raise HoldsPredictions(folder)
    provenance = describe_provenance(model, options.registration, options.output)
    if options.parts > 1:
        log.info(
            "This is part %d of %d, counted from 0: %d of %d pairs.", options.part, options.parts, len(part), len(pairs)
        )
    pending = find_pending(part, folder, provenance, options.output.outputs) if options.resume else part
    if pending:
        predictor = Predictor(model, device, options.registration)
        _predict(predictor, pending, folder, options.output, provenance)
    return _report(pairs, part, folder, provenance, options)


def _predict(
    predictor: Predictor, pairs: Sequence[PairInput], folder: Path, output: OutputOptions, provenance: Provenance
) -> None:
    """Predict pairs and write a record of each."""
    check_writable(folder)
    # From here on the folder holds neither the old nor the new set of predictions.
    (folder / PREDICT_FILE).unlink(missing_ok=True)
    for pair in pairs:
        remove_prediction(pair, folder, output.format)
    with logging_redirect_tqdm():
        outcomes = register_all(predictor, pairs, folder, output)
        for pair, outcome in tqdm(outcomes, "Predict", len(pairs), unit="pair"):
            memory = peak_memory(predictor.device)
            write_record(folder, pair.name, make_record(pair, outcome, provenance, memory))


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
    done = [
        record.pair
        for pair, record in records.items()
        if isinstance(record.pair, PredictedPair)
        and is_current(pair, record, folder, provenance, options.output.outputs)
    ]
    if done:
        log.info("\n%s", format_pairs(done))
    missing = len(pairs) - len(done) - len(failed)
    if missing:
        log.info("%d of %d pairs are left to other parts, or to a run that resumes this one.", missing, len(pairs))
    else:
        content = provenance.to_json() | _largest_memory(list(records.values())) | {"pairs": done}
        write_predictions(folder, Predictions.model_validate(content | {"failed": list(failed.values())}))
    problem = format_failures([failed[pair] for pair in part if pair in failed], len(part))
    if problem and options.launched:
        log.error("%s", problem)
    elif problem:
        raise UserError(problem)
    return None if missing else folder / PREDICT_FILE


def _largest_memory(records: Sequence[PairRecord]) -> dict[str, float]:
    """The largest of each figure of memory."""
    names = dict.fromkeys(name for record in records for name in record.memory)
    return {name: max(record.memory[name] for record in records if name in record.memory) for name in names}


def _holds_predictions(folder: Path, pairs: Sequence[PairInput]) -> bool:
    return (folder / PREDICT_FILE).exists() or any(record_path(folder, pair.name).exists() for pair in pairs)


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
        if name in pair_ids:
            raise UserError(
                f"The pairs {pair_ids[name]} and {pair.pair_id} would both be {name}: predict them into different "
                "folders."
            )
        pair_ids[name] = pair.pair_id
