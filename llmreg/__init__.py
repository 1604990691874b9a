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

_HOME_OF = {
    "ApplyInputs": "inference.apply",
    "ApplyOptions": "inference.apply",
    "DisplacementField": "geometry.field",
    "Evaluation": "api",
    "Grid": "geometry.grid",
    "ImageInput": "inference.case_reader",
    "MetricSummary": "api",
    # The name that RegistrationOptions had before.
    "Options": "inference.predictor",
    "PlannerOverrides": "preprocessing.planning.planner",
    "Plans": "plans.plans",
    "PlansChoice": "training.experiment",
    "Predictor": "inference.predictor",
    "Registration": "inference.registration",
    "RegistrationOptions": "inference.predictor",
    "TrainedModel": "api",
    "TrainingOptions": "training.options",
    "UserError": "errors",
    "apply": "inference.apply",
    "evaluate": "api",
    "plan": "api",
    "preprocess": "api",
    "train": "api",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is used, so that commands answer without importing torch."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'llmreg' has no attribute '{name}'")
    return getattr(import_module(f"llmreg.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    """List the public names, which are not attributes before they are used."""
    return sorted(__all__)
