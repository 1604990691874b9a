"""Checks of arguments that come from Python, which no parser of a command has looked at before."""

import math
import os
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path

from llmreg.errors import BadArgument, UnknownName

PathLike = Path | str
# One file or several.
PathsLike = PathLike | Iterable[PathLike]


def check_choice(argument: str, value: object, choices: Sequence[str]) -> None:
    """Check that a value is among the choices, or None. Raises UnknownName when it is not."""
    if value is not None and value not in choices:
        raise UnknownName(argument, str(value), choices)


def check_count(argument: str, value: object, least: int = 0) -> None:
    """Check that a value is a whole number from the least, or None. Raises BadArgument when it is not."""
    if value is not None and not (isinstance(value, Integral) and int(value) >= least):
        raise BadArgument(argument, f"{argument} is {value!r}: give a whole number from {least}.")


def check_positive(argument: str, value: object) -> None:
    """Check that a value is a number above 0, or None. Raises BadArgument when it is not."""
    if value is not None and not (isinstance(value, Real) and 0 < float(value) < math.inf):
        raise BadArgument(argument, f"{argument} is {value!r}: give a number above 0.")


def to_paths(argument: str, files: PathsLike) -> tuple[Path, ...]:
    """The path of one file, or the paths of several. Raises BadArgument when something is no path."""
    try:
        return tuple(map(Path, [files] if isinstance(files, str | os.PathLike) else files))
    except TypeError as error:
        raise BadArgument(argument, f"{argument} must be one or several paths of files: {error}.") from error
