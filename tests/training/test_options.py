from __future__ import annotations

from llmreg.commands.train import build_parser
from llmreg.training.experiment import PlansChoice
from llmreg.training.options import TrainingOptions


def test_the_command_line_has_the_same_defaults() -> None:
    arguments = vars(build_parser().parse_args(["1", "0"]))
    options = TrainingOptions()
    for name in ("epochs", "minutes", "resume", "compile", "pretrained"):
        assert arguments[name] == getattr(options, name)
    # A command may start processes without being asked, which a script may not.
    assert (arguments["workers"], options.workers) == (1, 0)
    assert tuple(arguments["log"]) == options.loggers
    assert arguments["plans"] == PlansChoice().plans
