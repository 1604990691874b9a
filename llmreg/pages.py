"""What this package's HTML pages share: how templates are rendered, the style sheet, and pictures inside a page."""

import base64
from importlib.resources import files

import jinja2


def create_environment(package: str) -> jinja2.Environment:
    """Create the environment of the templates in a package's folder ``templates``.

    Values are escaped, and a value that is missing is an error.
    """
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


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
