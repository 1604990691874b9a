"""Classical methods on pairs: fields and pre-alignments composed, what is kept, and processes that end."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from other_programs import SHIFT, replace_programs
from smooth import smooth_noise

from llmreg.comparison import classical_methods, classical_runs
from llmreg.comparison.classical_methods import CLASSICAL
from llmreg.comparison.classical_runs import register_pairs, run_limited
from llmreg.comparison.pair_tables import ClassicalPair
from llmreg.data.dataset import Case
from llmreg.errors import Interrupted, MissingPackage
from llmreg.evaluation.evaluate import evaluate_folder
from llmreg.geometry.grid import Grid, array_to_image, image_to_array
from llmreg.geometry.resampling import resample_image
from llmreg.images.fields import read_field
from llmreg.machine import process_peak_gb

GRID = Grid(
    size=(36, 40, 32), spacing=(2.0, 2.0, 2.5), origin=(30.0, 20.0, -50.0), direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1)
)
ELSEWHERE = sitk.TranslationTransform(3, (400.0, -300.0, 250.0))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> ClassicalPair:
    """A body with structure, and the same 6 mm further left, posterior and superior, in a scanner's other corner."""
    folder = tmp_path_factory.mktemp("peers")
    distance = np.linalg.norm(GRID.physical_points() - GRID.centre, axis=-1)
    noise = sum(smooth_noise(np.random.default_rng(int(sigma)), GRID.shape, sigma) for sigma in (2.0, 5.0))
    image = array_to_image(100 * (np.where(distance < 45, 3 + noise, 0)).astype(np.float32), GRID)
    label = array_to_image((distance < 45).astype(np.uint8) + (distance < 20).astype(np.uint8), GRID)
    moved = sitk.TranslationTransform(3, (-6.0, -6.0, -6.0))
    elsewhere = Grid(GRID.size, GRID.spacing, tuple(np.add(GRID.origin, ELSEWHERE.GetOffset())), GRID.direction)
    files = {"fixed": image, "fixed_label": label}
    for name, source, interpolator in (("moving", image, "linear"), ("moving_label", label, "nearest")):
        shifted = resample_image(source, GRID, moved, interpolator)
        shifted.SetOrigin(elsewhere.origin)
        files[name] = shifted
    paths = {name: folder / f"{name}.nii.gz" for name in files}
    for name, path in paths.items():
        sitk.WriteImage(files[name], str(path))
    return ClassicalPair(
        Case("A", "0001", 0, paths["fixed"], paths["fixed_label"]),
        Case("B", "0002", 1, paths["moving"], paths["moving_label"]),
        ELSEWHERE,
    )


def test_a_field_and_the_prealignment_are_composed_and_scored(
    pair: ClassicalPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_programs(monkeypatch, SHIFT)
    file = register_pairs("ants", [pair], tmp_path, 60)
    (row,) = json.loads(file.read_text())["pairs"]
    vectors = read_field(tmp_path / row["field"]).vectors
    np.testing.assert_allclose(vectors, np.broadcast_to(np.add(ELSEWHERE.GetOffset(), 6), vectors.shape), atol=1e-3)
    assert 0 < row["peak_memory_gb"] < 2
    assert row["seconds"] > 0
    metrics = evaluate_folder(tmp_path)["metrics"]
    assert metrics["dice"]["mean"] > 0.95
    assert metrics["prealigned_dice"]["mean"] < 0.9
    assert metrics["initial_dice"]["mean"] == 0


def test_the_fixed_and_the_moving_image_are_given_in_that_order(
    pair: ClassicalPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program fails unless the first image is the fixed one, whose corner lies elsewhere than the moving one's."""
    check = "assert sitk.ReadImage(sys.argv[1]).GetOrigin() == tuple(map(float, ORIGIN)), 'swapped'\n"
    code = SHIFT.replace("field =", check.replace("ORIGIN", repr(GRID.origin)) + "field =", 1)
    replace_programs(monkeypatch, code)
    content = json.loads(register_pairs("ants", [pair], tmp_path, 60).read_text())
    (row,) = content["pairs"]
    assert (row["fixed_path"], row["moving_path"]) == (str(pair.fixed.image), str(pair.moving.image))
    assert (row["fixed_label"], row["moving_label"]) == (str(pair.fixed.label), str(pair.moving.label))


def test_what_is_there_is_kept_and_what_failed_is_tried_again(
    pair: ClassicalPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_programs(monkeypatch, "raise SystemExit('no luck today')")
    record = json.loads(register_pairs("ants", [pair], tmp_path, 60).read_text())
    assert record["pairs"] == []
    assert record["failed"][0]["failed"].endswith("1: no luck today")
    replace_programs(monkeypatch, SHIFT)
    assert len(json.loads(register_pairs("ants", [pair], tmp_path, 60).read_text())["pairs"]) == 1
    replace_programs(monkeypatch, "raise SystemExit('not called')")
    assert len(json.loads(register_pairs("ants", [pair], tmp_path, 60).read_text())["pairs"]) == 1


# The program says that it has its memory, and waits until that was read.
WAIT = """
import sys, time
from pathlib import Path

x = b"x" * int(sys.argv[1])
Path("ready").touch()
while not Path("read").exists():
    time.sleep(0.01)
"""


@pytest.mark.parametrize(("size", "least", "most"), [(0, 0.002, 0.2), (2**29, 0.5, 0.7)])
def test_memory_is_the_programs_own(
    size: int, least: float, most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of the process that starts the program does not count."""
    ballast = np.ones(3 * 2**28, np.uint8)

    def read_memory(process: int) -> float | None:
        is_ready = (tmp_path / "ready").exists()
        peak = process_peak_gb(process)
        if is_ready:
            (tmp_path / "read").touch()
        return peak

    monkeypatch.setattr(classical_runs, "process_peak_gb", read_memory)
    failure, memory = run_limited([sys.executable, "-c", WAIT, str(size)], tmp_path, 600)
    assert failure is None
    assert least < memory < most < ballast.nbytes / 2**30


# Run by a process of its own, whose memory is small beside the other's.
READ_TOO_EARLY = """
import sys
from pathlib import Path
from llmreg.comparison import classical_runs
from llmreg.machine import peak_memory_gb

classical_runs.process_peak_gb = lambda process: 0.001
program = [sys.executable, "-c", "x = b'x' * 2**30"]
print(*classical_runs.run_limited(program, Path(sys.argv[1]), 600), peak_memory_gb())
"""


def test_memory_that_was_not_read_in_time_is_counted(tmp_path: Path) -> None:
    """What was read while the program started is less than what it had in the end."""
    process = subprocess.run(
        [sys.executable, "-c", READ_TOO_EARLY, str(tmp_path)], capture_output=True, text=True, check=True
    )
    failure, memory, starters_memory = process.stdout.split()
    assert failure == "None"
    assert float(starters_memory) < 0.9
    assert 1 < float(memory) < 1.2


def test_a_pair_that_fails_is_the_last_and_a_field_that_is_gone_is_made_again(
    pair: ClassicalPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_programs(monkeypatch, "open(__import__('sys').argv[3], 'w').write('no field')")
    pairs = [pair, replace(pair, fixed=replace(pair.fixed, name="C"))]
    record = json.loads(register_pairs("ants", pairs, tmp_path, 60).read_text())
    assert record["pairs"] == []
    (row,) = record["failed"]
    assert row["pair_id"] == "A_B"
    assert row["failed"].startswith("ants: its field")
    replace_programs(monkeypatch, SHIFT)
    record = json.loads(register_pairs("ants", pairs, tmp_path, 60).read_text())
    assert len(record["pairs"]) == 2
    (tmp_path / record["pairs"][1]["field"]).unlink()
    written_at = (tmp_path / record["pairs"][0]["field"]).stat().st_mtime_ns
    rows = json.loads(register_pairs("ants", pairs, tmp_path, 60).read_text())["pairs"]
    assert all((tmp_path / row["field"]).exists() for row in rows)
    assert (tmp_path / rows[0]["field"]).stat().st_mtime_ns == written_at


def processes_with(argument: Path) -> list[str]:
    """Command lines of processes that run and were given an argument."""
    lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(entry.read_text())
    return [line for line in lines if str(argument) in line]


def wait_for_the_end_of_processes_with(argument: Path) -> None:
    """Wait until killed processes are gone, which they may not be at once."""
    for _ in range(600):
        if not processes_with(argument):
            return
        time.sleep(0.1)
    pytest.fail(f"still running: {processes_with(argument)}")


def test_a_termination_ends_the_other_program_too(tmp_path: Path) -> None:
    # The program itself asks for the termination, so that it runs when the signal comes.
    code = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(3600)"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with pytest.raises(Interrupted) as stop:
        run_limited(command, tmp_path, 60)
    assert stop.value.exit_code == 128 + signal.SIGTERM
    wait_for_the_end_of_processes_with(tmp_path)


def test_a_crash_and_a_method_that_takes_too_long_are_sentences(tmp_path: Path) -> None:
    crash = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"]
    assert run_limited(crash, tmp_path, 60)[0] == "ended by SIGSEGV"
    # The method starts a program of its own, which would run for an hour.
    endless = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(3600)', sys.argv[1]])"
    )
    assert run_limited([sys.executable, "-c", endless, str(tmp_path)], tmp_path, 0.5)[0].endswith(" 0.5 s")
    wait_for_the_end_of_processes_with(tmp_path)


def test_a_method_that_is_not_installed_is_named_with_its_package(
    pair: ClassicalPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classical_methods, "is_installed", lambda method: False)
    with pytest.raises(MissingPackage) as error:
        register_pairs("elastix", [pair], tmp_path, 60)
    assert (error.value.package, error.value.install) == ("elastix", "itk-elastix")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", CLASSICAL)
def test_a_method_that_is_installed_finds_a_shift(method: str, pair: ClassicalPair, tmp_path: Path) -> None:
    """The field of a known shift tells its direction, its units and its place."""
    if find_spec(CLASSICAL[method].module) is None:
        pytest.skip(f"{CLASSICAL[method].package} is not installed")
    record = json.loads(register_pairs(method, [pair], tmp_path, 300).read_text())
    assert "failed" not in record
    field = read_field(tmp_path / record["pairs"][0]["field"])
    inside = image_to_array(sitk.ReadImage(str(pair.fixed.label))) == 2
    error = field.vectors[inside] - np.add(ELSEWHERE.GetOffset(), 6)
    assert np.linalg.norm(error.mean(axis=0)) < 1.5
