"""Predicting many pairs into a folder."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from llmreg.devices import peak_memory
from llmreg.errors import UserError
from llmreg.files import check_writable, file_digest, image_digest, read_json, remove_partial, write_json
from llmreg.geometry.io import read_image
from llmreg.geometry.labels import LabelInterpolation
from llmreg.inference.models import Model
from llmreg.inference.overview import failures, figures, table
from llmreg.inference.pair_inputs import OPTIONAL_FILES, PREDICT_FILE, PairInput, case_name, find_pairs
from llmreg.inference.predictor import ImageInput, Options, Predictor, Prepared, is_large
from llmreg.inference.registration import DEFAULT_OUTPUTS, OUTPUTS, Registration, file_name
from llmreg.plans.plans import PLANS_FILE, read_plans
from llmreg.training.checkpoints import read_state
from llmreg.version import __version__

log = logging.getLogger(__name__)

# A record for each pair that is done, from which a prediction goes on and its parts are put together.
RECORDS_FOLDER = ".pairs"
# Pairs that are worked on at a time: read, registered, written. Of large images, one at a time.
IN_FLIGHT = 3


@dataclass(frozen=True)
class Job:
    """Which pairs are predicted, what is written of them, and what happens to predictions that are there.

    Attributes:
        outputs: of each pair, any of :data:`llmreg.inference.registration.OUTPUTS`.
        format: of the fields, one of :data:`llmreg.geometry.formats.FORMATS`.
        labels: folder with a label map ``<case name>.nii.gz`` for moving images whose pair names none.
        label_interpolation: how label maps are warped.
        options: what is done beyond predicting.
        all_pairs: every fixed with every moving image.
        overwrite: replace predictions that the output folder holds.
        go_on: leave out pairs that are written already.
        part: of ``parts`` processes that share the pairs, this one's number from 0.
        parts: how many there are.
        launched: a launcher started this process, and would start it anew if it ended with an error: pairs that fail
            are logged and no more.
    """

    outputs: tuple[str, ...] = DEFAULT_OUTPUTS
    format: str = "itk"
    labels: Path | None = None
    label_interpolation: LabelInterpolation = "nearest"
    options: Options = field(default_factory=Options)
    all_pairs: bool = False
    overwrite: bool = False
    go_on: bool = False
    part: int = 0
    parts: int = 1
    launched: bool = False


def predict_folder(source: Path, output: Path, model: Model, device: torch.device, job: Job) -> Path | None:
    """Register the pairs of ``source`` and write what the job asks for, and ``predict.json``, to ``output``.

    A pair that cannot be registered does not stop the others. Processes that share the pairs need not know of each
    other: whichever sees that all pairs are done puts ``predict.json`` together.

    Returns:
        Where ``predict.json`` is; None as long as other parts are missing.

    Raises:
        UserError: pairs failed, and the others are written; ``output`` holds predictions and neither ``overwrite`` nor
            ``go_on`` is given, or those of another model.
    """
    # Wrong names are found out before anything else.
    plans = read_plans(model.folder / PLANS_FILE)
    pairs = [_with_label(pair, job) for pair in find_pairs(source, plans, job.all_pairs)]
    own = pairs[job.part :: job.parts]
    _check_names(pairs, job)
    record = output / PREDICT_FILE
    there = record.exists() or any(_record_of(pair, output).exists() for pair in own)
    if there and not (job.overwrite or job.go_on):
        raise UserError(
            f"{output} holds predictions already: choose another folder, or add --overwrite, or --continue for the "
            "pairs that are missing."
        )
    origin = {
        "llmreg_version": __version__,
        "model": f"{model.folder.parent.name}/{model.folder.name}",
        "folds": list(model.folds),
        "epochs": [read_state(path).epoch for path in model.folds.values()],
        "checkpoints": [file_digest(path)[:16] for path in model.folds.values()],
        "options": vars(job.options),
        "format": job.format,
        "label_interpolation": job.label_interpolation,
    }
    if job.parts > 1:
        log.info("This is part %d of %d, counted from 0: %d of %d pairs.", job.part, job.parts, len(own), len(pairs))
    todo = own
    if job.go_on:
        for pair in own:
            _check_origin(pair, output, origin)
        todo = [pair for pair in own if not _is_current(pair, output, origin, job.outputs)]
    if todo:
        predictor = Predictor(model, device, job.options)
        check_writable(output)
        # From here on the folder is neither the old nor the new set of predictions.
        record.unlink(missing_ok=True)
        for pair in todo:
            _forget(pair, output, job.format)
        with logging_redirect_tqdm():
            progress = tqdm(_predicted(predictor, todo, output, job), "Predict", len(todo), unit="pair")
            for pair, row in progress:
                about = {"asked": _asked(pair), "pair": row, "memory": peak_memory(device)}
                write_json(_record_of(pair, output), origin | about)
    known = [(pair, _record(pair, output)) for pair in pairs]
    rows = [
        one["pair"]
        for pair, one in known
        if one is not None and ("failed" in one["pair"] or _is_current(pair, output, origin, job.outputs))
    ]
    done = [row for row in rows if "failed" not in row]
    if done:
        log.info("\n%s", table(done))
    if len(rows) < len(pairs):
        log.info("%d of %d pairs are left to other parts, or to --continue.", len(pairs) - len(rows), len(pairs))
    else:
        failed = [row for row in rows if "failed" in row]
        memory = _most([one.get("memory", {}) for _, one in known if one is not None])
        write_json(record, origin | memory | {"pairs": done} | ({"failed": failed} if failed else {}))
    names = {pair.pair_id for pair in own}
    problem = failures([row for row in rows if "failed" in row and row["pair_id"] in names], len(own))
    if problem and job.launched:
        log.error("%s", problem)
    elif problem:
        raise UserError(problem)
    return record if len(rows) == len(pairs) else None


def _predicted(
    predictor: Predictor, pairs: Sequence[PairInput], output: Path, job: Job
) -> Iterator[tuple[PairInput, dict[str, Any]]]:
    """The pairs and their rows, in order. One pair is read and another written while the network works on a third."""
    reader, network, writer = (ThreadPoolExecutor(1) for _ in range(3))
    begun: deque[tuple[PairInput, Future[dict[str, Any]]]] = deque()
    try:
        alone = False
        for pair in pairs:
            was_alone, alone = alone, is_large(pair.fixed) or is_large(pair.moving)
            while begun and (alone or was_alone or len(begun) == IN_FLIGHT):
                yield _ended(*begun.popleft())
            work = _Work(predictor, pair, output, job)
            prepared = reader.submit(work.read)
            registered = network.submit(work.register, prepared)
            begun.append((pair, writer.submit(work.write, registered)))
        while begun:
            yield _ended(*begun.popleft())
    finally:
        # After Ctrl-C or a full disk, nothing else is begun.
        for executor in (reader, network, writer):
            executor.shutdown(cancel_futures=True)


class _Work:
    """What is done for a pair, in three steps that may run in threads of their own, and the seconds they take."""

    def __init__(self, predictor: Predictor, pair: PairInput, output: Path, job: Job) -> None:
        self._predictor, self._pair, self._output, self._job = predictor, pair, output, job
        self._seconds = 0.0

    def read(self) -> Prepared:
        pair = self._pair
        with self._timed():
            return self._predictor.prepare(
                ImageInput(pair.fixed, pair.fixed_modality, pair.fixed_mask),
                ImageInput(pair.moving, pair.moving_modality, pair.moving_mask),
                pair.initial_transform,
            )

    def register(self, prepared: Future[Prepared]) -> Registration:
        pair = prepared.result()
        with self._timed():
            return self._predictor.register(pair)

    def write(self, registered: Future[Registration]) -> dict[str, Any]:
        """The pair's row of ``predict.json``."""
        pair, job, found = self._pair, self._job, registered.result()
        with self._timed():
            label = read_image(pair.moving_label) if "labels" in job.outputs and pair.moving_label else None
            files = found.save(self._output, pair.name, job.outputs, job.format, label, job.label_interpolation)
        return _named(pair) | {
            **files,
            "format": job.format,
            "fixed_path": _absolute(pair.fixed),
            "moving_path": _absolute(pair.moving),
            **{role: _absolute(getattr(pair, role)) for role in OPTIONAL_FILES},
            "fixed_transform": found.fixed_transform.to_dict(),
            "moving_transform": found.moving_transform.to_dict(),
            **figures(found),
            "seconds": round(self._seconds, 2),
        }

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.monotonic()
        yield
        self._seconds += time.monotonic() - start


def _ended(pair: PairInput, row: Future[dict[str, Any]]) -> tuple[PairInput, dict[str, Any]]:
    """A pair's row; of one that failed, why. What fails every pair is raised: a full disk, want of memory."""
    try:
        return pair, row.result()
    except (UserError, RuntimeError, ValueError) as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        log.error("%s: %s", pair.name, error)
        log.debug("%s failed", pair.name, exc_info=error)
        return pair, _named(pair) | {"failed": str(error)}


def _with_label(pair: PairInput, job: Job) -> PairInput:
    """The pair with its moving label map, where label maps are asked for. Raises UserError when there is none."""
    if "labels" not in job.outputs or pair.moving_label is not None:
        return pair
    if job.labels is None:
        raise UserError(
            f"{pair.moving} has no label map to warp: give their folder with --labels, or name it in the column "
            "moving_label of a pairs.csv."
        )
    path = job.labels / f"{case_name(pair.moving)}.nii.gz"
    if not path.is_file():
        raise UserError(f"{path} does not exist: add the moving image's label map, or leave out --labels.")
    return replace(pair, moving_label=path)


def _named(pair: PairInput) -> dict[str, Any]:
    return {"pair_id": pair.pair_id, "fixed": case_name(pair.fixed), "moving": case_name(pair.moving)}


def _record_of(pair: PairInput, output: Path) -> Path:
    return output / RECORDS_FOLDER / f"{pair.name}.json"


def _record(pair: PairInput, output: Path) -> dict[str, Any] | None:
    path = _record_of(pair, output)
    return read_json(path) if path.exists() else None


def _most(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    """The largest of each figure."""
    names = dict.fromkeys(name for one in figures for name in one)
    return {name: max(one[name] for one in figures if name in one) for name in names}


def _differs(known: dict[str, Any], origin: dict[str, Any]) -> str | None:
    """What a record's model, or how it was used, is that is not this one."""
    keys = ("model", "folds", "epochs", "checkpoints", "options", "format", "label_interpolation")
    return next((f"{key} {known.get(key)}" for key in keys if known.get(key) != origin[key]), None)


def _check_origin(pair: PairInput, output: Path, origin: dict[str, Any]) -> None:
    """Raises UserError when another model predicted the pair, or the same in another way."""
    known = _record(pair, output)
    other = None if known is None else _differs(known, origin)
    if other is not None:
        raise UserError(f"{output} holds predictions of another model ({other}): go on with that, or add --overwrite.")


def _is_current(pair: PairInput, output: Path, origin: dict[str, Any], outputs: Sequence[str]) -> bool:
    """Whether the pair was predicted so from the files that are there now, and all that is asked for is written."""
    known = _record(pair, output)
    if known is None or _differs(known, origin) is not None or known["asked"] != _asked(pair):
        return False
    files = [known["pair"].get(key) for key in outputs]
    return all(name is not None and (output / name).exists() for name in files)


def _forget(pair: PairInput, output: Path, format: str) -> None:
    """Remove what was written of a pair, whole or in part, so that nothing old lies beside the new."""
    for key in OUTPUTS:
        remove_partial(output / file_name(key, pair.name, format))
    remove_partial(_record_of(pair, output))
    known = _record(pair, output)
    if known is not None:
        for key in OUTPUTS.keys() & known["pair"].keys():
            (output / known["pair"][key]).unlink(missing_ok=True)
        _record_of(pair, output).unlink()


def _check_names(pairs: Sequence[PairInput], job: Job) -> None:
    """Raises UserError when two pairs would be written to one file."""
    seen: dict[str, str] = {}
    for pair in pairs:
        name = file_name("field", pair.name, job.format)
        if name in seen:
            raise UserError(
                f"The pairs {seen[name]} and {pair.pair_id} would both be {name}: predict them into different folders."
            )
        seen[name] = pair.pair_id


def _asked(pair: PairInput) -> dict[str, str]:
    """The pair as JSON; files with what tells their content from others."""
    return {key: _described(value) for key, value in vars(pair).items()}


def _described(value: Any) -> str:
    if not isinstance(value, Path):
        return str(value)
    return f"{value.absolute()} {image_digest(value)}"


def _absolute(path: Path | None) -> str | None:
    # A link stays one: its name and its folder say which case it is.
    return None if path is None else str(path.absolute())
