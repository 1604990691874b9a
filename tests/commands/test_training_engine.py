"""What a training survives, and what it does in several processes."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_study import NAME, check_refusal, model, training

from llmreg.commands import find_best_configuration, predict, train
from llmreg.training.checkpoints import read_state

ROOT = Path(__file__).parents[2]
FINAL, LATEST = "checkpoint_final.safetensors", "checkpoint_latest.safetensors"


def small_training(name: str, *changes: str) -> list[str]:
    """The command line of a training whose network is small, for four epochs of six steps."""
    assignments = ["network.width=1", "training.steps_per_epoch=6", "training.epochs=4", "training.validation_pairs=1"]
    words = ["999", "fold0", "--network", "dual_pyramid", "--set", *assignments, *changes]
    return [*words, "--as", name, "--workers", "0", "--device", "cpu", "--no_validation"]


def small_fold(home: Path, name: str) -> Path:
    return home / "results" / NAME / f"dual_pyramid__{name}__half" / "fold_0"


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The rows of a training's log, without what differs from run to run."""
    rows = map(json.loads, (folder / "training_log.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


def count_steps(folder: Path) -> int:
    """How many steps the latest checkpoint has done."""
    state = read_state(folder / LATEST)
    return 6 * state.epoch + state.step


@pytest.fixture
def names(environment: Path) -> Iterator[list[str]]:
    """Names of plans whose files and models are removed after the test."""
    used: list[str] = []
    yield used
    for name in used:
        for folder in (environment / "results" / NAME).glob(f"*__{name}__half"):
            shutil.rmtree(folder)
        (environment / "preprocessed" / NAME / f"plans_{name}.json").unlink(missing_ok=True)


def start_process(words: list[str], *, own_group: bool = False) -> subprocess.Popen[str]:
    """Start another process, on request with a process group of its own as a terminal does."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=own_group
    )


# A training that waits in its ninth step until Ctrl-C has arrived or the tests have ended. Its arguments are a file
# that it writes when it waits, and those of llmreg.commands.
HELD_TRAINING = """
import os, runpy, signal, sys, time
from pathlib import Path
from llmreg.training.step import Learner

held, steps, take_step, tests = Path(sys.argv.pop(1)), [], Learner.step, os.getppid()


def hold(learner, batches, rate):
    steps.append(rate)
    if len(steps) == 9:
        # The first signal's handler takes itself away.
        handler = signal.getsignal(signal.SIGINT)
        held.touch()
        while signal.getsignal(signal.SIGINT) is handler and os.getppid() == tests:
            time.sleep(0.01)
    return take_step(learner, batches, rate)


Learner.step = hold
runpy.run_module("llmreg.commands", run_name="__main__", alter_sys=True)
"""


def start_held(arguments: list[str], held: Path, *, own_group: bool = False) -> subprocess.Popen[str]:
    """Start a training, and return when it is held in its ninth step."""
    words = [sys.executable, "-c", HELD_TRAINING, str(held), "train", *arguments]
    process = start_process(words, own_group=own_group)
    while not held.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


def processes_of(group: int) -> list[str]:
    """The command lines of the processes of a group, from Linux' own table."""
    commands = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, of_group = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:3]
            if int(of_group) == group and state != "Z":
                commands.append((folder / "cmdline").read_text())
        except (OSError, ProcessLookupError):
            continue
    return commands


@pytest.fixture(scope="module")
def undisturbed_fold(home: Path) -> Iterator[Path]:
    """The folder of a fold that was trained without a disturbance, on one thread like those that are disturbed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("llmreg_home", str(home))
        assert train.main(small_training("undisturbed")) == 0
    yield small_fold(home, "undisturbed")
    torch.set_num_threads(threads)
    shutil.rmtree(small_fold(home, "undisturbed").parent)


def assert_same_end(expected: Path, folder: Path) -> None:
    """Weights are the same bit by bit, and the logs say the same."""
    weights = [load_file(path / FINAL) for path in (expected, folder)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert read_log(expected) == read_log(folder)


def test_a_training_that_is_killed_and_stopped_ends_like_an_undisturbed_one(
    environment: Path, names: list[str], undisturbed_fold: Path, tmp_path: Path
) -> None:
    """A terminal sends Ctrl-C to the training and to its loaders alike, and no process is left behind."""
    names.append("disturbed")
    arguments, folder = small_training("disturbed"), small_fold(environment, "disturbed")
    process = start_held([*arguments, "--continue"], tmp_path / "before_it_is_killed")
    process.kill()
    process.communicate()
    steps_done = count_steps(folder)
    assert 6 <= steps_done < 9
    arguments_with_loader = [*arguments, "--continue", "--workers", "1"]
    process = start_held(arguments_with_loader, tmp_path / "before_it_is_stopped", own_group=True)
    assert len(processes_of(process.pid)) >= 2
    os.killpg(process.pid, signal.SIGINT)
    _, printed = process.communicate()
    assert process.returncode == 130, printed
    assert "--continue" in printed
    assert "Traceback" not in printed
    while processes_of(process.pid):
        time.sleep(0.02)
    assert count_steps(folder) == steps_done + 9
    assert train.main([*arguments, "--continue"]) == 0
    assert_same_end(undisturbed_fold, folder)


def test_two_processes_train_like_one_with_twice_the_accumulation(environment: Path, names: list[str]) -> None:
    names += ["single", "double"]
    changes = ("training.steps_per_epoch=1", "training.epochs=2", "training.validation_pairs=2")
    assert train.main(small_training("single", *changes, "training.accumulate=2")) == 0
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    arguments = [word for word in small_training("double", *changes) if word != "--no_validation"]
    process = start_process([sys.executable, *launcher, "-m", "llmreg.commands", "train", *arguments])
    _, printed = process.communicate()
    assert process.returncode == 0, printed
    single, double = (small_fold(environment, name) for name in ("single", "double"))
    rows, other_rows = read_log(single), read_log(double)
    assert len(rows) == len(other_rows) == 2
    for row, other in zip(rows, other_rows, strict=True):
        for key in ("loss", "loss_dice", "validation_dice"):
            assert other[key] == pytest.approx(row[key], abs=1e-5)
    assert rows[0]["loss"] != rows[-1]["loss"]
    other_weights = load_file(double / FINAL)
    for key, value in load_file(single / FINAL).items():
        torch.testing.assert_close(other_weights[key], value, rtol=0, atol=1e-4)
    assert json.loads((double / "debug.json").read_text())["processes"] == 2
    # The first process scored the fold, once.
    assert printed.count("mean +- SD over pairs") == 1
    assert (double / "validation" / "summary.json").exists()


def test_a_full_disk_is_one_sentence_and_loses_nothing(
    environment: Path, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A file may have no more than 100 kB, as if the disk were full when the checkpoint is written."""
    names.append("full")
    arguments, folder = (
        small_training("full", "network.width=4", "training.steps_per_epoch=1"),
        small_fold(environment, "full"),
    )
    assert train.main([*arguments, "--epochs", "1"]) == 0
    before = (folder / LATEST).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        assert train.main([*arguments, "--continue", "--epochs", "2"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    check_refusal(capsys, "ran out of space")
    assert (folder / LATEST).read_bytes() == before
    assert not [*folder.glob(".partial-*"), *folder.glob(".tmp*")]
    assert train.main([*arguments, "--continue", "--epochs", "2"]) == 0


def test_errors_of_training_come_with_the_options_that_help(
    environment: Path, names: list[str], undisturbed_fold: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names.append("hinted")
    arguments = small_training("hinted", "training.learning_rate=1e30", "training.clip_gradient=null")
    assert train.main([*arguments, "--epochs", "4"]) == 2
    check_refusal(capsys, "not finite at step", " onto ", "--set training.learning_rate")
    for words, option in (
        ([*arguments, "--pretrained", str(tmp_path)], "checkpoint"),
        (["999", "fold0", "--set", "loss.dice=2"], "--as"),
        (["999", "fold0", "--as", "hinted"], "--set"),
    ):
        assert train.main(words) == 2
        check_refusal(capsys, option)
    assert train.main(small_training(undisturbed_fold.parent.name.split("__")[1])) == 2
    check_refusal(capsys, "holds a training already", "--continue")


def test_fine_tuning_takes_over_what_fits_and_says_so(
    environment: Path, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    names.append("tuned")
    pretrained = model(environment) / "fold_0"
    weights = load_file(pretrained / FINAL)
    arguments = [*training("0", "tuned", environment, "training.learning_rate=1e-12"), "--epochs", "1"]
    assert train.main([*arguments, "--no_validation", "--pretrained", str(pretrained)]) == 0
    assert f"{len(weights)} of {len(weights)} tensors were taken over" in capsys.readouterr().err
    tuned = load_file(model(environment, "tuned") / "fold_0" / FINAL)
    for key, value in weights.items():
        torch.testing.assert_close(tuned[key], value, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def predicted_folder(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fields of the two pairs of the test set."""
    out = tmp_path_factory.mktemp("predicted")
    assert predict.main([*prediction(home), "-o", str(out)]) == 0
    return out


def prediction(home: Path) -> list[str]:
    """The command line of a prediction of the test set, without its output folder."""
    return ["-i", str(home / "raw" / NAME / "imagesTs"), "-m", str(model(home)), "-f", "0"]


def test_parts_of_a_prediction_need_not_know_of_each_other(
    environment: Path, predicted_folder: Path, tmp_path: Path
) -> None:
    arguments = [*prediction(environment), "-o", str(tmp_path), "--num_parts", "2"]
    assert predict.main([*arguments, "--part_id", "1"]) == 0
    assert not (tmp_path / "predict.json").exists()
    assert len(list(tmp_path.glob("disp_*"))) == 1
    assert predict.main([*arguments, "--part_id", "0"]) == 0
    rows, other_rows = (
        json.loads((folder / "predict.json").read_text())["pairs"] for folder in (predicted_folder, tmp_path)
    )
    assert [row["pair_id"] for row in rows] == [row["pair_id"] for row in other_rows]
    for row in rows:
        assert (predicted_folder / row["field"]).read_bytes() == (tmp_path / row["field"]).read_bytes()


def test_a_prediction_goes_on_with_the_pairs_that_are_missing(
    environment: Path, predicted_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(predicted_folder, tmp_path / "out")
    arguments = [*prediction(environment), "-o", str(out)]
    rows = json.loads((out / "predict.json").read_text())["pairs"]
    kept_field, lost_field = (out / row["field"] for row in rows)
    before, content = kept_field.stat().st_mtime_ns, lost_field.read_bytes()
    lost_field.unlink()
    (out / "predict.json").unlink()
    assert predict.main([*arguments, "--continue"]) == 0
    assert kept_field.stat().st_mtime_ns == before
    assert lost_field.read_bytes() == content
    assert [row["pair_id"] for row in json.loads((out / "predict.json").read_text())["pairs"]] == [
        row["pair_id"] for row in rows
    ]
    capsys.readouterr()
    assert predict.main(arguments) == 2
    check_refusal(capsys, "--continue")
    record = next((out / ".pairs").glob("*.json"))
    record.write_text(record.read_text().replace("llm_morph__tiny", "llm_morph__other"))
    assert predict.main([*arguments, "--continue"]) == 2
    check_refusal(capsys, "llm_morph__other", "--overwrite")
    assert predict.main([*arguments, "--num_parts", "2", "--part_id", "2"]) == 2
    check_refusal(capsys, "counted from 0")


def test_the_best_configuration_is_found_and_how_to_use_it_is_said(
    environment: Path, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    names.append("longer")
    assert train.main([*training("0", "longer", environment), "--epochs", "1"]) == 0
    capsys.readouterr()
    assert find_best_configuration.main(["999", "-f", "0"]) == 0
    printed = capsys.readouterr().err
    content = json.loads((environment / "results" / NAME / "best_configuration.json").read_text())
    assert {candidate["model"] for candidate in content["candidates"]} >= {
        "llm_morph__tiny__half",
        "llm_morph__longer__half",
    }
    assert f"llmreg_predict -i in/ -o out/ -d 999 -p {content['best'].split('__')[1]} -c half" in printed
    assert find_best_configuration.main(["999", "-f", "7"]) == 2
    check_refusal(capsys, "No fold was trained by all models")
