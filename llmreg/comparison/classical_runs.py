"""Run classical methods on pairs, each pair in a process of its own: a crash is recorded, and the comparison continues.

As a program, this module registers two images on one grid and writes the field; its arguments are the method's name
and the paths of the fixed image, the moving image and the field.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from llmreg.comparison import classical_methods, command_lines
from llmreg.comparison.pair_tables import ClassicalPair, are_transforms_there
from llmreg.errors import Interrupted, MissingPackage, UserError
from llmreg.files import atomic_write, image_digest
from llmreg.geometry.field import DisplacementField, chain_transforms
from llmreg.geometry.grid import Grid
from llmreg.images.fields import read_field, write_field
from llmreg.images.formats import DEFAULT_ENDING
from llmreg.images.image_files import read_image, write_image
from llmreg.images.itk import write_with_itk
from llmreg.inference.registration import file_name
from llmreg.machine import peak_memory_gb, process_peak_gb, usage_peak_gb
from llmreg.predictions import (
    PREDICT_FILE,
    FailedPair,
    PairRecord,
    PredictedPair,
    Predictions,
    read_record,
    write_predictions,
    write_record,
)

# How many times this process's own peak the system must count for another before the count is surely the other's: both
# are sums over cores, which lag behind.
_SURELY_MORE = 1.05
# Length of the end of a failed method's output that its reason quotes.
_QUOTED_CHARACTERS = 200


def register_pairs(method: str, pairs: Sequence[ClassicalPair], folder: Path, seconds: float) -> Path:
    """Register pairs into a folder of predictions; pairs that are registered there are kept.

    Args:
        method: a name of :data:`llmreg.comparison.classical_methods.CLASSICAL`.
        pairs: what is registered.
        folder: fields, pre-alignments and ``predict.json`` go there.
        seconds: how long a pair may take.

    Returns:
        ``predict.json``. It lists a pair that failed with the reason; the pairs after it are not tried.

    Raises:
        MissingPackage: the method is not installed.
    """
    if not classical_methods.is_installed(method):
        raise MissingPackage(method, "that method", classical_methods.CLASSICAL[method].package)
    outcomes: list[PredictedPair | FailedPair] = []
    with logging_redirect_tqdm():
        for pair in tqdm(pairs, desc=f"Register ({method})", unit="pair"):
            outcomes.append(_register_or_keep(method, pair, folder, seconds))
            if isinstance(outcomes[-1], FailedPair):
                # Means over the other pairs could not be compared, so that their time would be lost.
                break
    registered = [outcome for outcome in outcomes if isinstance(outcome, PredictedPair)]
    failed = [outcome for outcome in outcomes if isinstance(outcome, FailedPair)]
    return write_predictions(folder, Predictions(model=method, pairs=registered, failed=failed))


def _register_or_keep(method: str, pair: ClassicalPair, folder: Path, seconds: float) -> PredictedPair | FailedPair:
    record = read_record(folder, pair.name)
    # Images with other content or in another place count as others.
    content = {str(case.image.absolute()): image_digest(case.image) for case in (pair.fixed, pair.moving)}
    sources = {"files": content, "prealignment": list(pair.prealignment.GetParameters())}
    if record is not None and record.asked == sources and _is_valid(record, folder, seconds):
        return record.pair
    # Until all pairs are registered again, the folder holds no complete prediction.
    (folder / PREDICT_FILE).unlink(missing_ok=True)
    began = time.monotonic()
    outcome = _register(method, pair, folder, seconds)
    is_late = isinstance(outcome, FailedPair) and time.monotonic() - began >= seconds
    write_record(folder, pair.name, PairRecord(asked=sources, pair=outcome, waited=seconds if is_late else None))
    return outcome


def _is_valid(record: PairRecord, folder: Path, seconds: float) -> bool:
    """Whether the files of a pair are there, or it took too long and has no more time now. Other failures may pass."""
    if isinstance(record.pair, FailedPair):
        return (record.waited or 0.0) >= seconds
    return are_transforms_there(record.pair.model_copy(update={"folder": folder}))


def _register(method: str, pair: ClassicalPair, folder: Path, seconds: float) -> PredictedPair | FailedPair:
    names: dict[str, Any] = {"pair_id": pair.name, "fixed": pair.fixed.name, "moving": pair.moving.name}
    files: dict[str, Any] = {output: file_name(output, pair.name, "itk") for output in ("field", "prealignment")}
    began = time.monotonic()
    fixed, moving = read_image(pair.fixed.image), read_image(pair.moving.image)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        fixed_file, moving_file, field_file = (
            work / f"{stem}{DEFAULT_ENDING}" for stem in ("fixed", "moving", "field")
        )
        write_image(fixed, fixed_file)
        write_image(classical_methods.resample_onto(fixed, moving, pair.prealignment), moving_file)
        command = command_lines.registration_command(method, fixed_file, moving_file, field_file)
        failure, memory = run_limited(command, work, seconds)
        if failure:
            return FailedPair(**names, failed=f"{method}: {failure}")
        try:
            field = read_field(field_file)
        except UserError as error:
            return FailedPair(**names, failed=f"{method}: its field cannot be used: {error}")
    transform = chain_transforms(field.to_transform(), pair.prealignment)
    write_field(DisplacementField.from_transform(transform, Grid.from_image(fixed)), folder / files["field"])
    with atomic_write(folder / files["prealignment"]) as temporary:
        write_with_itk(pair.prealignment, temporary)
    return PredictedPair(
        **names,
        **files,
        format="itk",
        fixed_path=str(pair.fixed.image.absolute()),
        moving_path=str(pair.moving.image.absolute()),
        fixed_label=None if pair.fixed.label is None else str(pair.fixed.label.absolute()),
        moving_label=None if pair.moving.label is None else str(pair.moving.label.absolute()),
        seconds=round(time.monotonic() - began, 2),
        peak_memory_gb=round(memory, 3),
    )


def run_limited(command: Sequence[str], work: Path, seconds: float) -> tuple[str | None, float]:
    """Run a process in the folder ``work`` for at most some seconds, and end its children with it.

    Returns:
        Why the process failed, None when it did not; its peak memory (GiB).

    Raises:
        Interrupted: this process was told to stop.
    """
    output_file = work / "output.txt"
    with output_file.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            # Some methods write files of their own into the folder where they are started.
            cwd=work,
        )
        deadline, peak_gb = time.monotonic() + seconds, None
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            while True:
                # Memory is read while the process runs, since what the system counts afterwards includes its parent's.
                peak_gb = process_peak_gb(process.pid) or peak_gb
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                if time.monotonic() > deadline:
                    return f"took longer than {seconds:g} s", 0.0
                time.sleep(0.05)
        finally:
            # There is no such group once its processes have ended; macOS then says that it may not be killed.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            signal.signal(signal.SIGTERM, before)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode < 0:
        return f"ended by {signal.Signals(-process.returncode).name}", 0.0
    if process.returncode:
        words = " ".join(output_file.read_text(errors="replace").split())
        return f"ended with exit code {process.returncode}: {words[-_QUOTED_CHARACTERS:]}", 0.0
    counted_gb = usage_peak_gb(usage)
    # A count above the parent's peak is the process's own, and knows what came after the last reading.
    if peak_gb is None or counted_gb > _SURELY_MORE * peak_memory_gb():
        peak_gb = counted_gb
    return None, peak_gb


def _interrupt(number: int, _: FrameType | None) -> None:
    raise Interrupted(number, "pairs that are registered are kept.")


def main(arguments: Sequence[str]) -> None:
    """Register two images; see the module."""
    method, fixed, moving, field_file = arguments
    with tempfile.TemporaryDirectory() as work:
        field = classical_methods.CLASSICAL[method].register(Path(fixed), Path(moving), Path(work))
    if not field.grid.same_as(Grid.from_image(read_image(Path(fixed)))):
        raise SystemExit(f"{method} returned a field on another grid")
    write_field(field, Path(field_file))


if __name__ == "__main__":
    main(sys.argv[1:])
