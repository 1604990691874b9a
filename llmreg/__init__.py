"""llmreg: self-configuring multimodal deformable image registration with LLM-Morph."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llmreg.version import __version__

if TYPE_CHECKING:
    from llmreg.geometry.field import DisplacementField
    from llmreg.geometry.grid import Grid
    from llmreg.inference.predictor import ImageInput, Options, Predictor
    from llmreg.inference.registration import Registration

__all__ = ["DisplacementField", "Grid", "ImageInput", "Options", "Predictor", "Registration", "__version__"]

_HOMES = {
    "DisplacementField": "geometry.field",
    "Grid": "geometry.grid",
    "ImageInput": "inference.predictor",
    "Options": "inference.predictor",
    "Predictor": "inference.predictor",
    "Registration": "inference.registration",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when they are used: commands must answer --help without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'llmreg' has no attribute '{name}'")
    return getattr(import_module(f"llmreg.{_HOMES[name]}"), name)
