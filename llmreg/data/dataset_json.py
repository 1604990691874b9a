"""The typed entries of ``dataset.json``, and a sentence for the first one that is wrong."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from llmreg.errors import BadDataset, MissingFile


def parse_id(value: object) -> object:
    """Turn digits into a number; other values stay, for pydantic to judge."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]+", value) else value


Id = Annotated[int, BeforeValidator(parse_id), Field(ge=0)]


class _Raw(BaseModel):
    # Learn2Reg's files hold many keys that are not used here.
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class RawCase(_Raw):
    """An entry of a case: a path, or a path with others."""

    image: str
    label: str | None = None
    mask: str | None = None
    keypoints: str | None = None
    annotated_labels: list[Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _accept_path(cls, value: object) -> object:
        return {"image": value} if isinstance(value, str) else value


class RawPair(_Raw):
    """An entry of a pair: paths of its images."""

    fixed: str
    moving: str


class Direction(_Raw):
    """The numbers of the fixed and the moving modality."""

    fixed: Id
    moving: Id


class RawDataset(_Raw):
    """The keys of ``dataset.json`` that are read.

    Attributes:
        training: a list of cases for each modality, or a single list under the empty key.
    """

    modality: dict[Id, str] = Field(min_length=1)
    training: dict[str, list[RawCase]]
    labels: dict[str, Any] | None = None
    pairings: Any = None
    registration_direction: Direction | None = None
    training_paired_images: list[Any] | None = None
    registration_val: list[Any] | None = None
    registration_test: list[Any] | None = None

    @field_validator("training", mode="before")
    @classmethod
    def _accept_list(cls, value: object) -> object:
        return value if isinstance(value, dict) else {"": value}


_T = TypeVar("_T")


def validate(expected_type: type[_T], value: object, file: Path, *where: str | int) -> _T:
    """Validate a value of a JSON file.

    Args:
        expected_type: the class of the result.
        value: what was read.
        file: the file, for the error.
        where: the path of the value's key.

    Raises:
        BadDataset: names the first key that is wrong.
    """
    try:
        return TypeAdapter(expected_type).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in (*where, *first["loc"]) if part not in ("", "[key]"))
        if first["type"] == "missing":
            raise BadDataset(file, path, "is missing", "add it (see documentation/raw-data.md)") from None
        expected = "should be an object" if first["type"] == "model_type" else first["msg"].removeprefix("Input ")
        value_text = repr(first["input"])
        if len(value_text) > 60:
            value_text = value_text[:57] + "..."
        raise BadDataset(file, path, f"{expected} but is {value_text}", "correct the entry") from None


def description_file(folder: Path) -> Path:
    """The file ``dataset.json`` or ``*_dataset.json`` of a folder.

    Raises:
        MissingFile: there is no such folder, or no such file in it.
        BadDataset: there are several.
    """
    if not folder.is_dir():
        raise MissingFile(folder, "name the folder of a dataset")
    file = folder / "dataset.json"
    files = [file] if file.is_file() else sorted(folder.glob("*_dataset.json"))
    if not files:
        raise MissingFile(file, "write it as documentation/raw-data.md describes")
    if len(files) > 1:
        raise BadDataset(
            folder, "", f"holds several descriptions ({join(p.name for p in files)})", "rename one to dataset.json"
        )
    return files[0]


def join(values: Iterable[object]) -> str:
    """The values with commas between them, for messages."""
    return ", ".join(str(value) for value in values)


def label_table(raw: Mapping[str, Any] | None, file: Path) -> dict[int, str]:
    """Read the label table, which may be written as id -> name, name -> id, or one such table per modality.

    Returns:
        Names by label id, without background (0).

    Raises:
        BadDataset: an entry is no label, or an id has two names.
    """
    raw = raw or {}
    is_nested = all(isinstance(value, dict) for value in raw.values())
    tables = {f"labels.{key}": table for key, table in raw.items()} if is_nested else {"labels": raw}
    labels: dict[int, str] = {}
    for where, table in tables.items():
        ids: set[int] = set()
        by_id = all(re.fullmatch(r"[0-9]+", key) for key in table)
        for key, value in table.items():
            number, name = (parse_id(key), str(value)) if by_id else (parse_id(value), key)
            readable = isinstance(value, str | int) and not isinstance(value, bool)
            if not readable or not isinstance(number, int) or number < 0:
                raise BadDataset(
                    file,
                    f"{where}.{key}",
                    f"is {value!r}",
                    'write labels as "1": "liver" or "liver": 1, with whole numbers from 0',
                )
            if number in ids:
                raise BadDataset(file, where, f"gives the label id {number} twice", "use each id once")
            ids.add(number)
            if number and labels.setdefault(number, name) != name:
                raise BadDataset(
                    file,
                    where,
                    f"calls the label id {number} '{name}', and another modality calls it '{labels[number]}'",
                    "an id must mean the same structure in every modality",
                )
    return dict(sorted(labels.items()))
