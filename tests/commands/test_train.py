from __future__ import annotations

import os
import sys

import pytest
import torch
from recorded_calls import record_calls

from llmreg.commands import train
from llmreg.commands.shell import INTERRUPTED


def test_every_option_reaches_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = record_calls(monkeypatch, "llmreg.api.train")
    words = "7 fold1 -c full -p mine --set a=1 b=2 --as new --ablation vit --network transmorph --epochs 3 --continue"
    words += " --no_validation --device cpu --workers 2 --compile --log tensorboard"
    assert train.main(words.split()) == 0
    (call,) = calls
    assert (call["dataset"], call["fold"], call["configuration"], call["device"]) == ("7", "fold1", "full", "cpu")
    assert not call["validate"]
    options, plans = call["options"], call["plans"]
    assert (options.epochs, options.minutes, options.resume, options.workers) == (3, None, True, 2)
    assert (options.compile, options.loggers, options.pretrained) == (True, ("tensorboard",), None)
    assert (plans.plans, list(plans.changes), plans.name) == ("mine", ["a=1", "b=2"], "new")
    assert (plans.ablation, plans.network) == ("vit", "transmorph")


def test_epochs_and_minutes_exclude_each_other() -> None:
    with pytest.raises(SystemExit) as stop:
        train.main(["7", "0", "--epochs", "3", "--minutes", "4"])
    assert stop.value.code == 2


def test_several_gpus_are_started_by_torchrun_with_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def replace_process(program: str, words: list[str]) -> None:
        started.append(words)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "execv", replace_process)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name in ("OMP_NUM_THREADS", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"):
        monkeypatch.setenv(name, "1")
    words = ["7", "0", "--num_gpus", "2", "--epochs", "3"]
    assert train.main(words) == INTERRUPTED
    (command,) = started
    assert command[0] == sys.executable
    assert command[command.index("--nproc-per-node") + 1] == "2"
    assert command[-len(words) :] == words
    assert train.main(["7", "0", "--num_gpus", "3"]) == 2
    assert len(started) == 1
