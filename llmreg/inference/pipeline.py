"""Registering many pairs: while the network works on one, another is read and a third one written."""

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmreg.errors import UserError
from llmreg.geometry.field import jacobian_determinant
from llmreg.geometry.grid import image_to_array
from llmreg.geometry.resampling import LabelInterpolation
from llmreg.images.formats import strip_ending
from llmreg.images.image_files import read_image
from llmreg.inference.case_reader import ImageInput, is_large
from llmreg.inference.pair_inputs import OPTIONAL_FILES, PairInput
from llmreg.inference.predictor import Predictor, PreparedPair
from llmreg.inference.registration import DEFAULT_OUTPUTS, FADE, Registration
from llmreg.predictions import FailedPair, PredictedPair

log = logging.getLogger(__name__)

# This many pairs are worked on at a time: one is read, one registered, one written. Large pairs are worked on alone.
IN_FLIGHT = 3
Outcome = PredictedPair | FailedPair


@dataclass(frozen=True)
class OutputOptions:
    """What is written of each pair.

    Attributes:
        outputs: any of :data:`llmreg.inference.registration.OUTPUTS`.
        format: of the fields, one of :data:`llmreg.images.formats.FIELD_FORMATS`.
        label_interpolation: how label maps are warped.
    """

    outputs: tuple[str, ...] = DEFAULT_OUTPUTS
    format: str = "itk"
    label_interpolation: LabelInterpolation = "nearest"


@contextmanager
def _measure_time(seconds: list[float]) -> Iterator[None]:
    """Note how long a step takes."""
    start = time.monotonic()
    yield
    seconds.append(time.monotonic() - start)


def register_all(
    predictor: Predictor, pairs: Sequence[PairInput], folder: Path, options: OutputOptions
) -> Iterator[tuple[PairInput, Outcome]]:
    """Register pairs and write their outputs to a folder; yield them in order with what ``predict.json`` says of them.

    A pair that cannot be registered is a :class:`llmreg.predictions.FailedPair`.

    Raises:
        MemoryError: want of memory, which would fail every pair, or what PyTorch raises of the kind.
        OSError: a full disk.
    """
    reader, network, writer = (ThreadPoolExecutor(1) for _ in range(3))
    pending: deque[tuple[PairInput, Future[PredictedPair]]] = deque()
    try:
        is_alone = False
        for pair in pairs:
            was_alone, is_alone = is_alone, any(map(is_large, (pair.fixed, pair.moving)))
            while pending and (is_alone or was_alone or len(pending) == IN_FLIGHT):
                yield _finish(*pending.popleft())
            seconds: list[float] = []
            prepared = reader.submit(_read, predictor, pair, seconds)
            registered = network.submit(_register, predictor, prepared, seconds)
            pending.append((pair, writer.submit(_write, registered, pair, folder, options, seconds)))
        while pending:
            yield _finish(*pending.popleft())
    finally:
        # After Ctrl-C or on a full disk, what waits in the queues is dropped.
        for executor in (reader, network, writer):
            executor.shutdown(cancel_futures=True)


def _read(predictor: Predictor, pair: PairInput, seconds: list[float]) -> PreparedPair:
    with _measure_time(seconds):
        return predictor.prepare(
            ImageInput(pair.fixed, pair.fixed_modality, pair.fixed_mask),
            ImageInput(pair.moving, pair.moving_modality, pair.moving_mask),
            pair.initial_transform,
        )


def _register(predictor: Predictor, prepared: Future[PreparedPair], seconds: list[float]) -> Registration:
    pair = prepared.result()
    with _measure_time(seconds):
        return predictor.register(pair)


def _write(
    registered: Future[Registration], pair: PairInput, folder: Path, options: OutputOptions, seconds: list[float]
) -> PredictedPair:
    registration = registered.result()
    with _measure_time(seconds):
        label = read_image(pair.moving_label) if "labels" in options.outputs and pair.moving_label else None
        files = registration.save(
            folder, pair.name, options.outputs, options.format, label, options.label_interpolation
        )
    paths = {
        "fixed_path": pair.fixed,
        "moving_path": pair.moving,
        **{role: getattr(pair, role) for role in OPTIONAL_FILES},
    }
    return PredictedPair.model_validate(
        {
            **_names(pair),
            **files,
            "format": options.format,
            # A link stays a link: its name and its folder say which case it is.
            **{role: str(path.absolute()) if path else None for role, path in paths.items()},
            "fixed_transform": registration.fixed_transform.to_dict(),
            "moving_transform": registration.moving_transform.to_dict(),
            **measure(registration),
            "seconds": round(sum(seconds), 2),
        }
    )


def _finish(pair: PairInput, outcome: Future[PredictedPair]) -> tuple[PairInput, Outcome]:
    """Wait for a pair. What fails a single pair is its outcome; want of memory and a full disk are raised."""
    try:
        return pair, outcome.result()
    except (UserError, RuntimeError, ValueError) as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        log.error("%s: %s", pair.name, error)
        log.debug("%s failed", pair.name, exc_info=error)
        return pair, FailedPair(**_names(pair), failed=str(error))


def _names(pair: PairInput) -> dict[str, Any]:
    return {"pair_id": pair.pair_id, "fixed": strip_ending(pair.fixed), "moving": strip_ending(pair.moving)}


def measure(registration: Registration) -> dict[str, Any]:
    """Measure the deformation in the common frame, without pre-alignment: length (mm), folding and uncertainty.

    Returns:
        Attributes of :class:`llmreg.predictions.PredictedPair`.
    """
    frame = (slice(FADE, -FADE),) * 3
    lengths = np.linalg.norm(registration.deformation.vectors[frame], axis=-1)
    folded_percent = 100 * float((jacobian_determinant(registration.deformation)[frame] <= 0).mean())
    figures: dict[str, Any] = {
        "mean_mm": round(float(lengths.mean()), 2),
        "largest_mm": round(float(lengths.max()), 2),
        "folding_percent": round(folded_percent, 4),
    }
    if registration.refined is not None:
        figures["refined"] = {"before": registration.refined[0], "after": registration.refined[1]}
    if registration.spread is not None:
        figures["uncertainty_mm"] = round(float(image_to_array(registration.spread).mean()), 2)
    return figures
