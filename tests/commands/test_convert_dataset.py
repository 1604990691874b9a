from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from llmreg.commands import convert_dataset
from llmreg.data.converters.converter import CONVERTERS, Converter
from llmreg.settings import Settings


class Options(Settings):
    """Options of a converter that a test registers."""

    kind: Literal["small", "large"] = Field(default="small", description="size of the dataset")
    table: Path | None = Field(default=None, description="a table")


def test_the_options_of_a_registered_converter_are_offered_and_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []
    converter = Converter("a download", Options, "500", lambda *arguments: calls.append(arguments))
    parts = dict(CONVERTERS.parts) | {"toy": converter}
    monkeypatch.setattr(type(CONVERTERS), "parts", property(lambda self: parts))
    monkeypatch.setattr(CONVERTERS, "get", parts.get)
    assert convert_dataset.main(["toy", "folder", "--kind", "large", "--table", "a.json", "-d", "7"]) == 0
    assert convert_dataset.main(["toy", "folder"]) == 0
    large = Options(kind="large", table=Path("a.json"))
    assert calls == [(Path("folder"), large, 7), (Path("folder"), Options(), None)]
    with pytest.raises(SystemExit):
        convert_dataset.main(["toy", "folder", "--kind", "medium"])
    with pytest.raises(SystemExit):
        convert_dataset.main(["toy", "--help"])
    assert "size of the dataset" in capsys.readouterr().out


@pytest.mark.parametrize("name", CONVERTERS.names)
def test_every_converter_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        convert_dataset.main([name, "--help"])
    assert stop.value.code == 0
    assert "PATH" in capsys.readouterr().out
