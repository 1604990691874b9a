"""What every command shares: exit codes, the sentence of an error, and the spelling of options."""

from __future__ import annotations

import errno
import logging
from importlib import import_module
from pathlib import Path

import pytest

from llmreg.commands import shell
from llmreg.errors import Interrupted, UserError, WouldOverwrite


def run(action, argv=(), prepare=lambda parser: None):
    parser = shell.create_parser("Does a thing.", "  llmreg_thing")
    prepare(parser)
    return shell.run(action, lambda: parser, list(argv))


def fails(error):
    def action(options):
        raise error

    return action


def test_success_is_0_a_users_mistake_2_and_an_interruption_130(capsys):
    assert run(lambda options: None) == 0
    assert run(fails(UserError("The file x is missing: add it."))) == 2
    assert capsys.readouterr().err == "error: The file x is missing: add it.\n"
    assert run(fails(KeyboardInterrupt())) == 130
    assert run(fails(Interrupted(15, "the epoch was saved."))) == 143


def test_an_error_is_followed_by_its_hint(capsys):
    assert run(fails(WouldOverwrite(Path("field.nii.gz")))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: field.nii.gz ")
    assert "--overwrite" in line


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOSPC, "no space", "disk/file")])
def test_a_lack_of_memory_or_space_is_a_sentence(error, capsys):
    assert run(fails(error)) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("error", [ZeroDivisionError(), RuntimeError("a bug"), OSError(errno.EIO, "a broken disk")])
def test_faults_of_this_package_keep_their_traceback(error):
    with pytest.raises(type(error)):
        run(fails(error))


def test_verbose_logs_more_and_only_the_first_process_logs(monkeypatch):
    run(lambda options: None, ["--verbose"])
    assert logging.getLogger().level == logging.DEBUG
    monkeypatch.setenv("RANK", "1")
    run(lambda options: None)
    assert logging.getLogger().level == logging.WARNING


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many"])
def test_a_count_must_be_positive(text, capsys):
    with pytest.raises(SystemExit) as stop:
        run(lambda options: None, ["--n", text], lambda parser: parser.add_argument("--n", type=shell.positive))
    assert stop.value.code == 2
    assert text in capsys.readouterr().err
    assert shell.positive("3") == 3


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--memory-gb", "4"], ["--memory_gb", "4"]),
        (["--memory_gb", "4"], ["--memory_gb", "4"]),
        (["--memory-gb=4"], ["--memory_gb=4"]),
        (["--set-to=a-b=c-d", "e-f", "-x-y"], ["--set_to=a-b=c-d", "e-f", "-x-y"]),
        (["-", "--", "--a-b"], ["-", "--", "--a-b"]),
    ],
)
def test_only_the_names_of_long_options_are_spelled_anew(arguments, expected):
    assert shell.spell_with_underscores(arguments) == expected


@pytest.mark.parametrize(
    ("command", "old_words", "new_words"),
    [
        ("plan", ["-d", "1", "--memory-gb", "4"], ["-d", "1", "--memory_gb", "4"]),
        ("plan", ["-d", "1", "--memory-gb=4"], ["-d", "1", "--memory_gb=4"]),
        ("plan_and_preprocess", ["-d", "1", "--memory-gb", "4"], ["-d", "1", "--memory_gb", "4"]),
        ("plan_and_preprocess", ["-d", "1", "-np", "3"], ["-d", "1", "--num_processes", "3"]),
        ("extract_fingerprint", ["-d", "1", "-np", "3"], ["-d", "1", "--num_processes", "3"]),
        ("preprocess", ["-d", "1", "-np", "3"], ["-d", "1", "--num_processes", "3"]),
        ("train", ["1", "0", "-num_gpus", "2"], ["1", "0", "--num_gpus", "2"]),
        ("train", ["1", "0", "--num-gpus", "2"], ["1", "0", "--num_gpus", "2"]),
        ("evaluate", ["-i", "out", "--keypoints", "marks"], ["-i", "out", "--landmarks", "marks"]),
        (
            "apply",
            ["-t", "f.nii.gz", "-o", "o", "--points", "p.csv"],
            ["-t", "f.nii.gz", "-o", "o", "--landmarks", "p.csv"],
        ),
        ("benchmark", ["-d", "1", "--peer_minutes", "2"], ["-d", "1", "--classical_minutes", "2"]),
    ],
)
def test_old_spellings_mean_the_same_and_are_not_shown(command, old_words, new_words):
    parser = import_module(f"llmreg.commands.{command}").build_parser()
    assert parser.parse_args(old_words) == parser.parse_args(new_words)
    help_words = parser.format_help().replace(",", " ").split()
    assert not {word.partition("=")[0] for word in set(old_words) - set(new_words)} & set(help_words)


def test_subcommands_take_old_spellings_too():
    parser = import_module("llmreg.commands.convert_dataset").build_parser()
    parser.parse_args(["sr-reg", "folder-name", "-d", "3"])
    assert parser.parse_args(["sr-reg", "folder-name", "-d", "3"]).path == Path("folder-name")
