"""The style sheet of this package's HTML pages, and pictures inside a page."""

import base64
from importlib.resources import files


def style_sheet() -> str:
    """The style sheet of all pages, CSS."""
    return files("llmreg").joinpath("page.css").read_text(encoding="utf-8")


def data_url(picture: bytes, kind: str) -> str:
    """A picture as a URL that contains it, for the ``src`` of an ``img``.

    Args:
        picture: the bytes of its file.
        kind: png, webp ...
    """
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"
