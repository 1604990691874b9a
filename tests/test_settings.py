from typing import Annotated

import pytest
from pydantic import AfterValidator, ValidationError

from llmreg.registry import Registry
from llmreg.settings import Settings, first_problem, locate_problem

PARTS: Registry[str] = Registry("part", "llmreg.no_such_group")
PARTS.register("toy", "toy")


class Example(Settings):
    number: int = 1


class Nested(Settings):
    example: Example = Example()
    name: Annotated[str, AfterValidator(PARTS.get)] = "toy"


def test_settings_refuse_unknown_keys_and_changes() -> None:
    with pytest.raises(ValidationError, match="other"):
        Example.model_validate({"other": 2})
    settings = Example(number=3)
    with pytest.raises(ValidationError):
        settings.number = 4
    assert settings == Example(number=3)
    assert len({settings, Example(number=3)}) == 1


def test_the_first_problem_is_located_by_its_key() -> None:
    with pytest.raises(ValidationError) as error:
        Nested.model_validate({"example": {"number": "many"}})
    assert locate_problem(error.value)[0] == "example.number"
    assert first_problem(error.value) == ": ".join(locate_problem(error.value))
    with pytest.raises(ValidationError) as error:
        Nested.model_validate("text")
    assert locate_problem(error.value)[0] == "the whole file"


def test_a_name_that_no_registry_has_is_a_problem_of_its_key() -> None:
    with pytest.raises(ValidationError) as error:
        Nested.model_validate({"name": "other"})
    assert locate_problem(error.value) == (
        "name",
        "There is no part 'other': choose toy. A package that adds it may be missing here",
    )
