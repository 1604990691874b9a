import pytest
from pydantic import ValidationError

from llmreg.settings import Settings


class Example(Settings):
    number: int = 1


def test_settings_refuse_unknown_keys_and_changes() -> None:
    with pytest.raises(ValidationError, match="other"):
        Example.model_validate({"other": 2})
    settings = Example(number=3)
    with pytest.raises(ValidationError):
        settings.number = 4
    assert settings == Example(number=3)
    assert len({settings, Example(number=3)}) == 1
