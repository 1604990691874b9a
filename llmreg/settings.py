"""The base of all settings that files hold."""

from pydantic import BaseModel, ConfigDict, ValidationError


class Settings(BaseModel):
    """Settings that cannot be changed once they are made, and that refuse keys that they do not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def locate_problem(error: ValidationError) -> tuple[str, str]:
    """The path of the first key that is wrong, and what is wrong with it: a clause."""
    first = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(map(str, first["loc"])) or "the whole file"
    return key, first["msg"].removeprefix("Value error, ").rstrip(".")


def first_problem(error: ValidationError) -> str:
    """What :func:`locate_problem` finds, as ``key: problem``."""
    return ": ".join(locate_problem(error))
