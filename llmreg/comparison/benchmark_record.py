"""The records of a comparison: ``benchmark.json`` in its folder, and another in each folder of a learned method."""

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from llmreg.errors import UnreadableFile
from llmreg.files import read_json, write_json

# This folder lies in a dataset's folder of results.
BENCHMARK_FOLDER = "benchmark"
BENCHMARK_FILE = "benchmark.json"


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read the record of a folder, None where there is none. Raises UnreadableFile when its content is wrong."""
        path = folder / BENCHMARK_FILE
        if not path.is_file():
            return None
        try:
            return cls.model_validate(read_json(path))
        except ValidationError:
            raise UnreadableFile(path, "is not a record of a benchmark", "run the benchmark again") from None

    def write(self, folder: Path) -> None:
        """Write the record into a folder."""
        write_json(folder / BENCHMARK_FILE, self.model_dump(exclude_none=True))


class BenchmarkRecord(_Record):
    """What was compared.

    Attributes:
        dataset: id or whole name, as it was given.
        folds: whose pairs count.
        study: what all methods of a comparison must share (:func:`llmreg.comparison.benchmark_settings.identity`).
        judged_by: digest of what scores are made from (:func:`llmreg.comparison.judged_pairs.digest_scoring_inputs`).
        methods: titles of the scored methods by name.
        failed: reasons by the names of the methods that could not be scored.
    """

    dataset: str = ""
    folds: list[str]
    study: dict[str, Any] = {}
    judged_by: str = ""
    methods: dict[str, str]
    failed: dict[str, str] = {}


class PredictionRun(_Record):
    """How the pairs of a fold were predicted by a learned method.

    Attributes:
        about: what the fields were made from; other content means other fields.
        spent: seconds of all commands that predicted; None when one of them may have been killed.
    """

    about: dict[str, Any]
    spent: float | None = None
