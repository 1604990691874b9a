"""The spelled commands are what their parsers read, and a command's end is told from its interruption."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llmreg.commands import predict, train
from llmreg.comparison import command_lines
from llmreg.comparison.benchmark_settings import BenchmarkSettings
from llmreg.comparison.methods import Method
from llmreg.errors import Interrupted, UserError

SETTINGS = BenchmarkSettings("7", plans="mine", configuration="half", minutes=2.5, device="cpu", workers=3)


def test_a_training_is_spelled_as_the_command_reads_it() -> None:
    method = Method("voxelmorph-small", "V", "learned", "voxelmorph", ("network.size=small",))
    words = command_lines.training_command(SETTINGS, method, "all", method.changes, "name")
    assert words[0] == "train"
    options = train.build_parser().parse_args(words[1:])
    assert (options.dataset, options.fold, options.plans, options.configuration) == ("7", "all", "mine", "half")
    assert (options.network, options.set, options.name) == ("voxelmorph", ["network.size=small"], "name")
    assert (options.minutes, options.workers, options.device) == (2.5, 3, "cpu")
    assert (options.resume, options.validate) == (True, False)


def test_a_prediction_is_spelled_as_the_command_reads_it() -> None:
    refined = Method("a+refine", "A", "learned", refinement_steps=50)
    words = command_lines.prediction_command(SETTINGS, refined, Path("pairs.csv"), Path("out"), Path("model"), "1")
    assert words[0] == "predict"
    options = predict.build_parser().parse_args(words[1:])
    assert (options.input, options.output, options.model) == (Path("pairs.csv"), Path("out"), Path("model"))
    assert (options.folds, options.refine, options.save) == (["1"], 50, ["field", "prealignment"])
    assert options.resume
    # Digests of earlier comparisons hold these words.
    assert command_lines.prediction_options(refined) == ["--refine", "50"]
    assert command_lines.prediction_options(Method("a", "A", "learned")) == []


class EndedProcess:
    """A process that has ended."""

    def __init__(self, code: int) -> None:
        self.code = code

    def wait(self) -> int:
        return self.code


@pytest.mark.parametrize(("code", "number"), [(130, 2), (143, 15), (-15, 15), (-2, 2)])
def test_a_command_that_was_stopped_is_an_interruption(code: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: EndedProcess(code))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as error:
        command_lines.run_command(["train"])
    assert error.value.exit_code == 128 + number
    assert "llmreg_train" in str(error.value)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_command_that_fails_is_named() -> None:
    with pytest.raises(UserError, match=r"^llmreg_evaluate .* 2\b"):
        command_lines.run_command(["evaluate"])


def test_classical_methods_run_in_a_process_of_their_own() -> None:
    words = command_lines.registration_command("ants", Path("f"), Path("m"), Path("field"))
    assert words[0] == sys.executable
    assert words[-4:] == ["ants", "f", "m", "field"]
