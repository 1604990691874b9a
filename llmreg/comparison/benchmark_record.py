"""The records of a comparison: ``benchmark.json`` in its folder, and another in each folder of a learned method."""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from llmreg.errors import UnreadableFile
from llmreg.files import read_json, write_json

# In a dataset's folder of results.
BENCHMARK_FOLDER = "benchmark"
BENCHMARK_FILE = "benchmark.json"
Record = TypeVar("Record", bound=BaseModel)


class BenchmarkRecord(BaseModel):
    """What was compared.

    Attributes:
        dataset: id or whole name, as it was given.
        folds: whose pairs count.
        study: what all methods of a comparison must share (:func:`llmreg.comparison.benchmark_settings.identity`).
        judged_by: digest of what scores are made from (:func:`llmreg.comparison.judged_pairs.scored_from`).
        methods: titles of the scored methods by name.
        failed: reasons by the names of the methods that could not be scored.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    dataset: str = ""
    folds: list[str]
    study: dict[str, Any] = {}
    judged_by: str = ""
    methods: dict[str, str]
    failed: dict[str, str] = {}


class PredictionRun(BaseModel):
    """How the pairs of a fold were predicted by a learned method.

    Attributes:
        about: what the fields were made from; other content means other fields.
        spent: seconds of all commands that predicted; None when one of them may have been killed.
    """

    about: dict[str, Any]
    spent: float | None = None


def read_benchmark(folder: Path) -> BenchmarkRecord | None:
    """Read the record of a comparison, None where there is none. Raises UnreadableFile when its content is wrong."""
    return _read(BenchmarkRecord, folder / BENCHMARK_FILE)


def write_benchmark(folder: Path, record: BenchmarkRecord) -> None:
    """Write the record of a comparison."""
    write_json(folder / BENCHMARK_FILE, record.model_dump())


def read_prediction_run(folder: Path) -> PredictionRun | None:
    """Read how a learned method's pairs were predicted; None where nothing says it."""
    return _read(PredictionRun, folder / BENCHMARK_FILE)


def write_prediction_run(folder: Path, run: PredictionRun) -> None:
    """Write how a learned method's pairs were predicted."""
    write_json(folder / BENCHMARK_FILE, run.model_dump(exclude_none=True))


def _read(kind: type[Record], path: Path) -> Record | None:
    if not path.is_file():
        return None
    try:
        return kind.model_validate(read_json(path))
    except ValidationError:
        raise UnreadableFile(path, "is not a record of a benchmark", "run the benchmark again") from None
