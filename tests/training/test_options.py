from __future__ import annotations

from llmreg.commands.train import build_parser
from llmreg.training.experiment import PlansChoice
from llmreg.training.options import TrainingOptions


def test_the_command_line_has_the_same_defaults() -> None:
    parsed = vars(build_parser().parse_args(["1", "0"]))
    options = TrainingOptions()
    for name in ("epochs", "minutes", "resume", "workers", "compile", "pretrained"):
        assert parsed[name] == getattr(options, name)
    assert tuple(parsed["log"]) == options.loggers
    assert parsed["plans"] == PlansChoice().plans
