"""The registry of converters, and one that another package adds to the command."""

import json

from outside_packages import run_python, write_package

from llmreg.data.converters.converter import CONVERTERS


def test_every_converter_describes_itself_and_its_options() -> None:
    assert CONVERTERS.names[:2] == ("learn2reg-abdomen-mrct", "sr-reg")
    for converter in CONVERTERS.parts.values():
        assert converter.summary
        assert all(field.description for field in converter.options.model_fields.values())
        # All options can be left out.
        converter.options()


def test_a_package_outside_adds_a_converter_to_the_command(tmp_path) -> None:
    source = """
import json
from pathlib import Path
from typing import Literal

from pydantic import Field

from llmreg.data.converters.converter import CONVERTERS, Converter
from llmreg.settings import Settings


class Options(Settings):
    part: Literal["head", "foot"] = Field(default="head", description="what is converted")
    cases: int = Field(default=3, description="how many")
    table: Path | None = Field(default=None, description="a table of subjects")


def convert(source, options, dataset_id):
    print(json.dumps([str(source), options.model_dump(mode="json"), dataset_id]))
    return source


CONVERTERS.register("toy-scans", Converter("scans of a toy", Options, "77", convert))
"""
    write_package(tmp_path, "toy_scans", source, "llmreg.converters")
    script = """
from llmreg.commands.convert_dataset import main
print(main(["toy-scans", "downloads", "--part", "foot", "--cases", "4", "--table", "t.csv", "-d", "5"]))
print(main(["toy-scans", "downloads"]))
"""
    lines = run_python(tmp_path, script).splitlines()
    assert [json.loads(line) for line in lines] == [
        ["downloads", {"part": "foot", "cases": 4, "table": "t.csv"}, 5],
        0,
        ["downloads", {"part": "head", "cases": 3, "table": None}, None],
        0,
    ]
