"""Which pairs of a folder have been predicted: their records, and what they were predicted with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmreg.errors import OtherPredictions
from llmreg.files import file_digest, image_digest, remove_partial
from llmreg.inference.models import Model
from llmreg.inference.pair_inputs import PairInput
from llmreg.inference.pipeline import Outcome, OutputOptions
from llmreg.inference.predictor import RegistrationOptions
from llmreg.inference.registration import OUTPUTS, file_name
from llmreg.predictions import PairRecord, PredictedPair, Provenance, read_record, record_path
from llmreg.training.checkpoints import read_state
from llmreg.version import __version__


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
    content: dict[str, Any] = {"asked": describe_sources(pair), "pair": outcome, "memory": memory}
    return PairRecord(**provenance.to_json(), **content)


def find_pending(
    pairs: Sequence[PairInput], folder: Path, provenance: Provenance, outputs: Sequence[str]
) -> list[PairInput]:
    """The pairs that are still to be predicted.

    Raises:
        OtherPredictions: another model predicted one of the pairs, or the same in another way.
    """
    pending = []
    for pair in pairs:
        record = read_record(folder, pair.name)
        difference = None if record is None else record.difference(provenance)
        if difference is not None:
            raise OtherPredictions(folder, difference)
        if not is_current(pair, record, folder, provenance, outputs):
            pending.append(pair)
    return pending


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
    for output in OUTPUTS:
        remove_partial(folder / file_name(output, pair.name, format))
    remove_partial(record_path(folder, pair.name))
    record = read_record(folder, pair.name)
    if record is None:
        return
    for output in OUTPUTS:
        file = getattr(record.pair, output, None)
        if file is not None:
            (folder / file).unlink(missing_ok=True)
    record_path(folder, pair.name).unlink()
