"""What this package's HTML pages share: their look, and pictures that need no file beside the page."""

from __future__ import annotations

import base64
from importlib.resources import files


def style() -> str:
    """The style sheet of all pages."""
    return files("llmreg").joinpath("page.css").read_text(encoding="utf-8")


def embedded(picture: bytes, kind: str) -> str:
    """A picture (``kind``: png, webp ...) as what ``src`` may hold."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"
