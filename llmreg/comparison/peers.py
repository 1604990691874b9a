"""Classical methods run on pairs: a process for each, so that a crash is a row and not the end.

    python -m llmreg.comparison.peers METHOD FIXED MOVING FIELD

registers two images that share a grid and writes the field; it is what the others are run by.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import SimpleITK as sitk
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from llmreg.comparison.classical import CLASSICAL, on_one_grid
from llmreg.data.dataset import Pair
from llmreg.errors import Interrupted, UserError
from llmreg.files import atomic_write, image_digest, read_json, write_json
from llmreg.geometry.field import DisplacementField, chain_transforms
from llmreg.geometry.grid import Grid
from llmreg.geometry.io import read_field, read_image, write_field, write_image, write_with_itk
from llmreg.inference.pair_inputs import PREDICT_FILE
from llmreg.inference.predict import RECORDS_FOLDER
from llmreg.inference.registration import file_name
from llmreg.machine import held_gb, peak_of

# Of what a method says before it fails, so much is kept.
_LAST_WORDS = 200


@dataclass(frozen=True, eq=False)
class PeerPair:
    """Two images, their label maps, and where the moving one starts from.

    Attributes:
        name: ``<fixed case>_<moving case>``.
        cases: names of the fixed and the moving case.
        fixed: file of the fixed image.
        moving: file of the moving image.
        fixed_label: its label map's file, where there is one.
        moving_label: the moving one's.
        prealignment: linear, fixed points -> moving points; all methods start from it, as networks do.
    """

    name: str
    cases: Pair
    fixed: Path
    moving: Path
    fixed_label: Path | None
    moving_label: Path | None
    prealignment: sitk.Transform


def missing(method: str) -> str | None:
    """Why a method cannot be run here, and what to do; None when it can."""
    peer = CLASSICAL[method]
    if find_spec(peer.module) is not None:
        return None
    return f"{method} is not installed: pip install {peer.package}, or all with pip install 'llmreg[peers]'."


def register_pairs(method: str, pairs: Sequence[PeerPair], folder: Path, seconds: float) -> Path:
    """Register pairs into a folder that ``llmreg_evaluate`` scores like predictions; those that are there are kept.

    Args:
        method: a name of :data:`llmreg.comparison.classical.CLASSICAL`.
        pairs: what is registered.
        folder: fields, pre-alignments and ``predict.json`` go there.
        seconds: how long a pair may take.

    Returns:
        ``predict.json``; a pair that failed is listed in it with the reason, and those after it are not tried.

    Raises:
        UserError: the method is not installed.
    """
    problem = missing(method)
    if problem:
        raise UserError(problem)
    rows = []
    file = folder / PREDICT_FILE
    with logging_redirect_tqdm():
        for pair in tqdm(pairs, desc=f"Register ({method})", unit="pair"):
            record = folder / RECORDS_FOLDER / f"{pair.name}.json"
            asked = _asked(pair)
            known = read_json(record) if record.exists() else {}
            if known.get("asked") != asked or not _kept(known, folder, seconds):
                # Until all pairs are there again, they are no prediction.
                file.unlink(missing_ok=True)
                began = time.monotonic()
                row = _registered(method, pair, folder, seconds)
                late = "failed" in row and time.monotonic() - began >= seconds
                known = {"asked": asked, "row": row} | ({"waited": seconds} if late else {})
                write_json(record, known)
            rows.append(known["row"])
            if "failed" in known["row"]:
                # Means over other pairs could not be compared, so that the time of the rest would be lost.
                break
    failed = [row for row in rows if "failed" in row]
    done = [row for row in rows if "failed" not in row]
    content = {"model": method, "pairs": done} | ({"failed": failed} if failed else {})
    write_json(file, content)
    return file


def _kept(known: Mapping[str, Any], folder: Path, seconds: float) -> bool:
    """Whether a pair's record stands: its files are there, or it took too long and would be given no more time.

    Other failures may pass.
    """
    row = known["row"]
    return known.get("waited", 0.0) >= seconds if "failed" in row else are_there(folder, row)


def are_there(folder: Path, row: Mapping[str, Any]) -> bool:
    """Whether the transforms are in the folder that a row of ``predict.json`` names."""
    return all((folder / row[output]).is_file() for output in ("field", "prealignment") if row.get(output))


def _asked(pair: PeerPair) -> dict[str, Any]:
    """What a registration was made from: images that are others, or lie elsewhere, count as others."""
    content = {str(file.absolute()): image_digest(file) for file in (pair.fixed, pair.moving)}
    return {"files": content, "prealignment": list(pair.prealignment.GetParameters())}


def _registered(method: str, pair: PeerPair, folder: Path, seconds: float) -> dict[str, Any]:
    """The pair's row of ``predict.json``."""
    named = {"pair_id": pair.name, "fixed": pair.cases.fixed, "moving": pair.cases.moving}
    files = {output: file_name(output, pair.name, "itk") for output in ("field", "prealignment")}
    began = time.monotonic()
    fixed, moving = read_image(pair.fixed), read_image(pair.moving)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        paths = [work / f"{what}.nii.gz" for what in ("fixed", "moving", "field")]
        write_image(fixed, paths[0])
        write_image(on_one_grid(fixed, moving, pair.prealignment), paths[1])
        failed, memory = _run(_command(method, paths), work, seconds)
        if failed:
            return named | {"failed": f"{method}: {failed}"}
        try:
            found = read_field(paths[2])
        except UserError as error:
            return named | {"failed": f"{method}: its field is of no use: {error}"}
    whole = chain_transforms(found.to_transform(), pair.prealignment)
    write_field(DisplacementField.from_transform(whole, Grid.from_image(fixed)), folder / files["field"])
    with atomic_write(folder / files["prealignment"]) as temporary:
        write_with_itk(pair.prealignment, temporary)
    return (
        named
        | files
        | {
            "format": "itk",
            "fixed_path": str(pair.fixed.absolute()),
            "moving_path": str(pair.moving.absolute()),
            "fixed_label": None if pair.fixed_label is None else str(pair.fixed_label.absolute()),
            "moving_label": None if pair.moving_label is None else str(pair.moving_label.absolute()),
            "seconds": round(time.monotonic() - began, 2),
            "peak_memory_gb": round(memory, 3),
        }
    )


def _command(method: str, paths: Sequence[Path]) -> list[str]:
    """What registers the fixed and the moving image at ``paths`` and writes the field to the last of them."""
    return [sys.executable, "-m", "llmreg.comparison.peers", method, *map(str, paths)]


def _run(command: Sequence[str], work: Path, seconds: float) -> tuple[str | None, float]:
    """Why a process failed, if it did, and its peak memory (GiB). Raises Interrupted when told to stop."""
    said = work / "said.txt"
    with said.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            # Some write files of their own to where they are started.
            cwd=work,
        )
        deadline, held = time.monotonic() + seconds, None
        before = signal.signal(signal.SIGTERM, _stopped)
        try:
            while True:
                # As long as it runs: what it leaves behind counts the memory of the process that started it.
                held = held_gb(process.pid) or held
                pid, status, used = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                if time.monotonic() > deadline:
                    return f"took longer than {seconds:g} s", 0.0
                time.sleep(0.05)
        finally:
            # Its children, too; and after a signal.
            _end_group(process.pid)
            process.wait()
            signal.signal(signal.SIGTERM, before)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode < 0:
        return f"ended by {signal.Signals(-process.returncode).name}", 0.0
    if process.returncode:
        words = " ".join(said.read_text(errors="replace").split())
        return f"ended with exit code {process.returncode}: {words[-_LAST_WORDS:]}", 0.0
    return None, held or peak_of(used)


def _stopped(number: int, _: FrameType | None) -> None:
    raise Interrupted(number, "run the command again to go on.")


def _end_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
    except PermissionError:
        return  # macOS, of processes that have ended.


def main(arguments: Sequence[str]) -> None:
    method, fixed, moving, field = arguments
    with tempfile.TemporaryDirectory() as work:
        found = CLASSICAL[method].register(Path(fixed), Path(moving), Path(work))
    if not found.grid.same_as(Grid.from_image(read_image(Path(fixed)))):
        raise SystemExit(f"{method} returned a field on another grid")
    write_field(found, Path(field))


if __name__ == "__main__":
    main(sys.argv[1:])
