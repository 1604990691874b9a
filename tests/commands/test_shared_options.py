from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from llmreg.commands import shared_options, shell
from llmreg.errors import UserError
from llmreg.inference import models


def parse(*arguments: str) -> argparse.Namespace:
    parser = shell.create_parser("A command.", "  llmreg_command")
    shared_options.add_model(parser, "average")
    return parser.parse_args(arguments)


def test_a_model_folder_is_chosen_instead_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "load_model", lambda folder, folds: (folder, folds))
    monkeypatch.setattr(models, "find_model", lambda *names: names)
    assert shared_options.choose_model(parse("-m", "model", "-f", "0", "1")) == (Path("model"), ["0", "1"])
    chosen = shared_options.choose_model(parse("-d", "2", "-c", "half", "-p", "mine", "--network", "voxelmorph"))
    assert chosen == ("2", "half", "mine", None, "voxelmorph")
    for option in (("-d", "2"), ("-c", "half"), ("-p", "mine"), ("--network", "voxelmorph")):
        with pytest.raises(UserError):
            shared_options.choose_model(parse("-m", "model", *option))


def test_every_registered_network_can_be_named() -> None:
    from llmreg.networks.network_registry import NETWORKS

    for name in NETWORKS.names:
        assert parse("--network", name).network == name
    with pytest.raises(SystemExit):
        parse("--network", "nonsense")


def test_what_a_planner_is_told() -> None:
    parser = shared_options.create_dataset_parser("A command.", "  llmreg_command")
    shared_options.add_planning(parser)
    options = parser.parse_args(["-d", "1", "-c", "full", "--spacing", "3", "4", "5", "--memory_gb", "2.5"])
    overrides = shared_options.read_overrides(options)
    assert (overrides.configuration, overrides.spacing, options.memory_gb) == ("full", (3.0, 4.0, 5.0), 2.5)
    assert shared_options.read_overrides(parser.parse_args(["-d", "1"])).spacing is None


def test_a_field_format_is_a_registered_one() -> None:
    assert shared_options.field_format("learn2reg") == "learn2reg"
    with pytest.raises(argparse.ArgumentTypeError, match="itk"):
        shared_options.field_format("ants")
