from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import pytest
from pydantic import Field, model_validator

from llmreg.commands import convert_dataset
from llmreg.data.converters.converter import CONVERTERS, Converter
from llmreg.settings import Settings


class Options(Settings):
    """Options of a converter that a test registers."""

    kind: Literal["small", "large"] = Field(default="small", description="size of the dataset")
    table: Path | None = Field(default=None, description="a table")


class Counted(Settings):
    """Options of which one must be given, and another has a least value."""

    table: Path = Field(description="a table, 100 % needed")
    count: int = Field(default=3, ge=1)
    names: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check_count(self) -> Self:
        if self.count > 9 and self.table.suffix == ".json":
            raise ValueError("so many are in no JSON")
        return self


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What two converters that are registered for this test are called with."""
    calls: list[Any] = []
    parts = dict(CONVERTERS.parts) | {
        name: Converter("all 100 % of a download", options, "500 %", lambda *arguments: calls.append(arguments))
        for name, options in (("toy", Options), ("counted", Counted))
    }
    monkeypatch.setattr(type(CONVERTERS), "parts", property(lambda self: parts))
    monkeypatch.setattr(CONVERTERS, "get", parts.get)
    return calls


def test_options_that_do_not_fit_are_one_sentence(calls: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    table = ["--table", "a.json"]
    assert convert_dataset.main(["counted", "folder", *table]) == 0
    assert calls == [(Path("folder"), Counted(table=Path("a.json")), None)]
    for words, parts in (
        (["--count", "abc"], ("count cannot be 'abc'", "--count")),
        (["--count", "0"], ("count cannot be '0'", "--count")),
        (["--count", "10"], ("so many are in no JSON",)),
    ):
        assert convert_dataset.main(["counted", "folder", *table, *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert all(part in line for part in parts)
    with pytest.raises(SystemExit) as stop:
        convert_dataset.main(["counted", "folder"])
    assert stop.value.code == 2
    assert "--table" in capsys.readouterr().err.splitlines()[-1]
    for words, shown in ((["--help"], "all 100 % of"), (["counted", "--help"], "a table, 100 % needed")):
        with pytest.raises(SystemExit) as stop:
            convert_dataset.main(words)
        assert stop.value.code == 0
        assert shown in " ".join(capsys.readouterr().out.split())


def test_the_options_of_a_registered_converter_are_offered_and_read(
    calls: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
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
