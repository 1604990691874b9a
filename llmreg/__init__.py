"""llmreg: self-configuring multimodal deformable image registration with LLM-Morph.

Everything a Python user needs is named here, and imported when it is first used: ``import llmreg`` takes no time.
The page ``documentation/python.md`` shows how the parts are used together.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llmreg.version import __version__

if TYPE_CHECKING:
    from llmreg.api import Evaluation, MetricSummary, TrainedModel, evaluate, plan, preprocess, train
    from llmreg.errors import UserError
    from llmreg.geometry.field import DisplacementField
    from llmreg.geometry.grid import Grid
    from llmreg.inference.apply import ApplyInputs, ApplyOptions, apply
    from llmreg.inference.case_reader import ImageInput
    from llmreg.inference.predictor import Options, Predictor, RegistrationOptions
    from llmreg.inference.registration import Registration
    from llmreg.plans.plans import Plans
    from llmreg.preprocessing.planning.planner import PlannerOverrides
    from llmreg.training.experiment import PlansChoice
    from llmreg.training.options import TrainingOptions

__all__ = [
    "ApplyInputs",
    "ApplyOptions",
    "DisplacementField",
    "Evaluation",
    "Grid",
    "ImageInput",
    "MetricSummary",
    "Options",
    "PlannerOverrides",
    "Plans",
    "PlansChoice",
    "Predictor",
    "Registration",
    "RegistrationOptions",
    "TrainedModel",
    "TrainingOptions",
    "UserError",
    "__version__",
    "apply",
    "evaluate",
    "plan",
    "preprocess",
    "train",
]

_HOMES = {
    "api": ("Evaluation", "MetricSummary", "TrainedModel", "evaluate", "plan", "preprocess", "train"),
    "errors": ("UserError",),
    "geometry.field": ("DisplacementField",),
    "geometry.grid": ("Grid",),
    "inference.apply": ("ApplyInputs", "ApplyOptions", "apply"),
    "inference.case_reader": ("ImageInput",),
    # Options is the name that RegistrationOptions had before.
    "inference.predictor": ("Options", "Predictor", "RegistrationOptions"),
    "inference.registration": ("Registration",),
    "plans.plans": ("Plans",),
    "preprocessing.planning.planner": ("PlannerOverrides",),
    "training.options": ("TrainingOptions",),
    "training.experiment": ("PlansChoice",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name when it is used, so that commands answer without importing torch."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'llmreg' has no attribute '{name}'")
    return getattr(import_module(f"llmreg.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    """List the public names, which are not attributes before they are used."""
    return sorted(__all__)
