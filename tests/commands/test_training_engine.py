"""What a training survives, and what it does on several processes."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_study import model, refused, training

from llmreg.commands import find_best_configuration, predict, train
from llmreg.networks import compilation
from llmreg.training import checkpoints as checkpoint
from llmreg.training import loggers
from llmreg.training import run as trainer

ROOT = Path(__file__).parents[2]
FINAL, LATEST = "checkpoint_final.safetensors", "checkpoint_latest.safetensors"


def fold_of(home: Path, name: str) -> Path:
    return model(home, name) / "fold_0"


def contents(path: Path) -> dict[str, list[float]]:
    """A checkpoint's tensors, to be compared bit by bit."""
    return {name: value.flatten().tolist() for name, value in load_file(path).items()}


def log_of(folder: Path) -> list[dict[str, float]]:
    """The rows of a training's log."""
    return [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]


@pytest.fixture
def names(environment: Path) -> Iterator[list[str]]:
    """Names of models whose folders are removed after the test."""
    used: list[str] = []
    yield used
    for name in used:
        shutil.rmtree(model(environment, name), ignore_errors=True)
        (environment / "preprocessed" / "Dataset999_Demo" / f"plans_{name}.json").unlink(missing_ok=True)


def started(arguments: list[str], *launcher: str, alone: bool = False) -> subprocess.Popen[str]:
    """A training in another process; ``alone`` in a process group of its own, as a terminal starts it."""
    words = [sys.executable, *launcher, "-m", "llmreg.commands.train", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=alone
    )


def processes_of(group: int) -> list[str]:
    """The command lines of the processes of a group, from Linux' own table."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, of_group = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:3]
            if int(of_group) == group and state != "Z":
                found.append((folder / "cmdline").read_text())
        except (OSError, ProcessLookupError):
            continue
    return found


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


CALM = ("training.steps_per_epoch=6", "training.epochs=3")


@pytest.fixture(scope="module")
def calm(home: Path) -> Iterator[Path]:
    """The folder of a fold that was trained without a disturbance, on one thread like those that are disturbed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("llmreg_home", str(home))
        assert train.main(training("0", "calm", home, *CALM)) == 0
    yield fold_of(home, "calm")
    torch.set_num_threads(threads)
    shutil.rmtree(model(home, "calm"))


def ended_like(calm: Path, other: Path) -> bool:
    """Whether weights are the same bit by bit, and the logs say the same."""
    logs = [
        [{key: row[key] for key in ("epoch", "loss", "loss_dice", "validation_dice")} for row in log_of(folder)]
        for folder in (calm, other)
    ]
    return contents(calm / FINAL) == contents(other / FINAL) and logs[0] == logs[1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_training_that_goes_on_where_it_was(
    environment: Path, names: list[str], calm: Path, number: signal.Signals, code: int
) -> None:
    names.append("stopped")
    arguments, folder = training("0", "stopped", environment, *CALM), fold_of(environment, "stopped")
    process = started(arguments)
    wait_for(folder / "debug.json", process)
    time.sleep(0.5)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "--continue" in said
    assert "Traceback" not in said
    state = checkpoint.read_state(folder / LATEST)
    assert 0 < 6 * state.epoch + state.step < 18
    assert train.main([*arguments, "--continue"]) == 0
    assert ended_like(calm, folder)


def test_ctrl_c_leaves_no_process_behind(environment: Path, names: list[str], calm: Path) -> None:
    """A terminal sends the signal to the training and to its loaders alike."""
    names.append("left")
    arguments, folder = training("0", "left", environment, *CALM), fold_of(environment, "left")
    process = started([*arguments, "--workers", "2"], alone=True)
    wait_for(folder / "debug.json", process)
    time.sleep(2)
    assert len(processes_of(process.pid)) > 2
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "--continue" in said
    assert "Traceback" not in said
    deadline = time.monotonic() + 10
    while processes_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not processes_of(process.pid)
    assert train.main([*arguments, "--continue"]) == 0
    assert ended_like(calm, folder)


def test_a_training_that_is_killed_again_and_again_ends_like_an_undisturbed_one(
    environment: Path, names: list[str], calm: Path
) -> None:
    names.append("killed")
    arguments, folder = training("0", "killed", environment, *CALM), fold_of(environment, "killed")
    moments = random.Random(3)
    for _ in range(2):
        process = started([*arguments, "--continue"])
        wait_for(folder / "debug.json", process)
        time.sleep(moments.uniform(0.2, 3))
        process.kill()
        process.communicate()
        if (folder / LATEST).exists():
            checkpoint.read_state(folder / LATEST)
        (folder / "debug.json").unlink()
    assert train.main([*arguments, "--continue"]) == 0
    assert ended_like(calm, folder)


def test_two_trainings_write_the_same_checkpoint_byte_by_byte(environment: Path, names: list[str]) -> None:
    names.append("twice")
    found = []
    for _ in range(2):
        assert train.main([*training("0", "twice", environment), "--epochs", "1"]) == 0
        found.append((fold_of(environment, "twice") / FINAL).read_bytes())
        shutil.rmtree(model(environment, "twice"))
    assert found[0] == found[1]


def test_two_processes_train_like_one_with_twice_the_accumulation(environment: Path, names: list[str]) -> None:
    names += ["one", "two"]
    change = ("training.steps_per_epoch=1", "training.epochs=4", "training.validation_pairs=2")
    assert train.main(training("0", "one", environment, *change, "training.accumulate=2")) == 0
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    process = started(training("0", "two", environment, *change), *launcher)
    _, said = process.communicate(timeout=180)
    assert process.returncode == 0, said
    rows = {
        name: [
            json.loads(line) for line in (fold_of(environment, name) / "training_log.jsonl").read_text().splitlines()
        ]
        for name in ("one", "two")
    }
    assert len(rows["one"]) == len(rows["two"]) == 4
    for one, two in zip(rows["one"], rows["two"], strict=True):
        for key in ("loss", "loss_dice", "validation_dice"):
            assert two[key] == pytest.approx(one[key], abs=1e-5)
    assert rows["one"][0]["loss"] != rows["one"][-1]["loss"]
    weights = [load_file(fold_of(environment, name) / FINAL) for name in ("one", "two")]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=0, atol=1e-4)
    debug = json.loads((fold_of(environment, "two") / "debug.json").read_text())
    assert debug["processes"] == 2
    # The first process scored the fold, once.
    assert said.count("mean +- SD over pairs") == 1


def test_a_loss_that_is_no_number_names_the_pair_and_keeps_the_batch(
    environment: Path, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    names.append("wild")
    arguments = training("0", "wild", environment, "training.learning_rate=1e30", "training.clip_gradient=null")
    assert train.main([*arguments, "--epochs", "4"]) == 2
    refused(capsys, "not finite at step", " onto ", "learning_rate")
    kept = list(fold_of(environment, "wild").glob("not_finite_step_*.safetensors"))
    assert len(kept) == 1
    assert {"fixed", "moving", "fixed_labels", "sample"} <= load_file(kept[0]).keys()


def test_a_full_disk_is_one_sentence_and_loses_nothing(
    environment: Path, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As far as the checkpoint is concerned: a file may have no more than 100 kB."""
    names.append("full")
    arguments = training("0", "full", environment)
    assert train.main([*arguments, "--epochs", "1"]) == 0
    before = (fold_of(environment, "full") / LATEST).read_bytes()

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        assert train.main([*arguments, "--continue", "--epochs", "2"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    refused(capsys, "ran out of space")
    assert (fold_of(environment, "full") / LATEST).read_bytes() == before
    assert not [*fold_of(environment, "full").glob(".partial-*"), *fold_of(environment, "full").glob(".tmp*")]
    assert train.main([*arguments, "--continue", "--epochs", "2"]) == 0


def test_a_checkpoint_is_written_in_the_middle_of_a_long_epoch(
    environment: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names.append("long")
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    states = []
    save = checkpoint.save

    def noted(folder: Path, which: str, state: checkpoint.State, *more: object) -> None:
        states.append((which, state.epoch, state.step))
        save(folder, which, state, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "save", noted)
    assert train.main([*training("0", "long", environment, "training.steps_per_epoch=3"), "--epochs", "1"]) == 0
    assert states == [*(("latest", 0, step) for step in (1, 2, 3)), ("best", 1, 0), ("latest", 1, 0), ("final", 1, 0)]


def test_fine_tuning_takes_over_what_fits_and_says_so(
    environment: Path, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    names += ["tuned", "narrow"]
    start = load_file(fold_of(environment, "tiny") / FINAL)
    arguments = [*training("0", "tuned", environment, "training.learning_rate=1e-12"), "--epochs", "1"]
    assert train.main([*arguments, "--pretrained", str(fold_of(environment, "tiny"))]) == 0
    assert f"{len(start)} of {len(start)} tensors were taken over" in capsys.readouterr().err
    found = load_file(fold_of(environment, "tuned") / FINAL)
    for key, value in start.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6)
    # A wider network has other shapes; what does not depend on the width is taken over.
    arguments = [*training("0", "narrow", environment, "network.width=8"), "--epochs", "1"]
    assert train.main([*arguments, "--pretrained", str(fold_of(environment, "tiny") / FINAL)]) == 0
    assert "of another shape or other layers there" in capsys.readouterr().err
    empty = environment / "nothing"
    empty.mkdir(exist_ok=True)
    assert train.main([*training("0", "other", environment), "--pretrained", str(empty)]) == 2
    refused(capsys, "holds no trained fold")


def test_a_network_that_cannot_be_compiled_is_trained_as_it_is(
    environment: Path, names: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names.append("broken")

    def broken(network: torch.nn.Module, **how: object) -> torch.nn.Module:
        raise RuntimeError("no compiler here\nand more")

    monkeypatch.setattr(compilation.torch, "compile", broken)
    arguments = training("0", "broken", environment, "training.steps_per_epoch=1")
    assert train.main([*arguments, "--epochs", "1", "--compile"]) == 0
    assert "cannot be compiled here (no compiler here): it runs as it is" in capsys.readouterr().err


def test_other_loggers_are_told_each_epoch(
    environment: Path, names: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names.append("told")
    rows: list[dict[str, object]] = []

    class Noting:
        def __init__(self, folder: Path, done: int, config: dict[str, object]) -> None:
            assert config["plans_name"] == "told"

        def epoch(self, row: dict[str, object]) -> None:
            rows.append(row)

        def close(self) -> None:
            rows.append({})

    monkeypatch.setitem(loggers.OPTIONAL, "tensorboard", Noting)
    assert train.main([*training("0", "told", environment), "--epochs", "2", "--log", "tensorboard"]) == 0
    assert [row.get("epoch") for row in rows] == [1, 2, None]
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert train.main([*training("0", "told2", environment), "--epochs", "1", "--log", "wandb"]) == 2
    names.append("told2")
    refused(capsys, "wandb is not installed", "pip install 'llmreg[wandb]'")


def test_parts_of_a_prediction_need_not_know_of_each_other(environment: Path, tmp_path: Path) -> None:
    source = environment / "raw" / "Dataset999_Demo" / "imagesTs"
    base = ["-i", str(source), "-m", str(model(environment)), "-f", "0"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert predict.main([*base, "-o", str(whole)]) == 0
    assert predict.main([*base, "-o", str(parts), "--num_parts", "2", "--part_id", "1"]) == 0
    assert not (parts / "predict.json").exists()
    assert len(list(parts.glob("disp_*"))) == 1
    assert predict.main([*base, "-o", str(parts), "--num_parts", "2", "--part_id", "0"]) == 0
    one, other = (json.loads((folder / "predict.json").read_text())["pairs"] for folder in (whole, parts))
    assert [row["pair_id"] for row in one] == [row["pair_id"] for row in other]
    for row in one:
        assert (whole / row["field"]).read_bytes() == (parts / row["field"]).read_bytes()


def test_a_prediction_goes_on_with_the_pairs_that_are_missing(
    environment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = environment / "raw" / "Dataset999_Demo" / "imagesTs", tmp_path / "out"
    arguments = ["-i", str(source), "-o", str(out), "-m", str(model(environment)), "-f", "0"]
    assert predict.main(arguments) == 0
    rows = json.loads((out / "predict.json").read_text())["pairs"]
    kept, lost = (out / row["field"] for row in rows)
    before, content = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    (out / "predict.json").unlink()
    assert predict.main([*arguments, "--continue"]) == 0
    assert kept.stat().st_mtime_ns == before
    assert lost.read_bytes() == content
    assert [row["pair_id"] for row in json.loads((out / "predict.json").read_text())["pairs"]] == [
        row["pair_id"] for row in rows
    ]
    capsys.readouterr()
    assert predict.main(arguments) == 2
    refused(capsys, "--continue")
    record = next((out / ".pairs").glob("*.json"))
    record.write_text(record.read_text().replace("llm_morph__tiny", "llm_morph__other"))
    assert predict.main([*arguments, "--continue"]) == 2
    refused(capsys, "llm_morph__other", "--overwrite")
    assert predict.main([*arguments, "--num_parts", "2", "--part_id", "2"]) == 2
    refused(capsys, "counted from 0")


def test_the_best_configuration_is_found_and_how_to_use_it_is_said(
    environment: Path, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    names.append("longer")
    assert train.main([*training("0", "longer", environment), "--epochs", "1"]) == 0
    capsys.readouterr()
    assert find_best_configuration.main(["999", "-f", "0"]) == 0
    said = capsys.readouterr().err
    found = json.loads((environment / "results" / "Dataset999_Demo" / "best_configuration.json").read_text())
    assert {one["model"] for one in found["candidates"]} >= {"llm_morph__tiny__half", "llm_morph__longer__half"}
    assert f"llmreg_predict -i in/ -o out/ -d 999 -p {found['best'].split('__')[1]} -c half" in said
    assert find_best_configuration.main(["999", "-f", "7"]) == 2
    refused(capsys, "No fold was trained by all models")
