"""Entries of dataset.json are read as Learn2Reg and nnU-Net write them; what is wrong is named by its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmreg.data.dataset_json import (
    RawCase,
    RawDataset,
    description_file,
    label_table,
    parse_id,
    validate,
)
from llmreg.errors import BadDataset, MissingFile

FILE = Path("dataset.json")


def test_digits_are_ids_and_other_values_stay() -> None:
    assert [parse_id(value) for value in ("07", "-1", "1.5", 3, None)] == [7, "-1", "1.5", 3, None]


@pytest.mark.parametrize(
    "table",
    [
        {"0": "background", "1": "liver", "12": "spleen"},
        {"background": 0, "liver": 1, "spleen": 12},
        {"liver": "1", "spleen": "12"},
        {"0": {"1": "liver"}, "1": {"12": "spleen", "1": "liver"}},
        {"MR": {"liver": 1}, "CT": {"spleen": 12}},
    ],
)
def test_label_tables_are_read_in_every_spelling(table: dict[str, Any]) -> None:
    assert label_table(table, FILE) == {1: "liver", 12: "spleen"}


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"liver": -1}, "labels.liver"),
        ({"liver": True}, "labels.liver"),
        ({"liver": 1, "spleen": 1}, "1 twice"),
        ({"0": {"liver": 1}, "1": {"spleen": 1}}, "1 'spleen', .* 'liver'"),
        ({"0": {"liver": 1.5}}, "labels.0.liver"),
    ],
)
def test_a_wrong_label_is_named(table: dict[str, Any], named: str) -> None:
    with pytest.raises(BadDataset, match=named):
        label_table(table, FILE)


def test_there_may_be_no_labels() -> None:
    assert label_table(None, FILE) == label_table({}, FILE) == {}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"training": []}, "modality"),
        ({"modality": {}, "training": []}, "modality"),
        ({"modality": {"MR": "0"}, "training": []}, "modality.MR"),
        ({"modality": {"0": 1}, "training": []}, "modality.0"),
        (
            {"modality": {"0": "MR"}, "training": [], "registration_direction": {"fixed": 0}},
            "registration_direction.moving",
        ),
        ([], "should be"),
    ],
)
def test_the_first_wrong_key_is_named(content: Any, named: str) -> None:
    with pytest.raises(BadDataset, match=named) as refusal:
        validate(RawDataset, content, FILE)
    assert refusal.value.path == FILE


def test_a_long_wrong_value_is_cut() -> None:
    with pytest.raises(BadDataset) as refusal:
        validate(RawCase, {"image": list(range(1000))}, FILE, "training", 3)
    assert refusal.value.key == "training.3.image"
    assert len(str(refusal.value)) < 250


def test_a_case_may_be_a_path() -> None:
    assert validate(RawCase, "imagesTr/a.nii.gz", FILE) == RawCase(image="imagesTr/a.nii.gz")


def test_the_description_is_the_only_one(tmp_path: Path) -> None:
    with pytest.raises(MissingFile) as missing:
        description_file(tmp_path)
    assert missing.value.path == tmp_path / "dataset.json"
    (tmp_path / "A_dataset.json").touch()
    assert description_file(tmp_path).name == "A_dataset.json"
    (tmp_path / "B_dataset.json").touch()
    with pytest.raises(BadDataset, match=r"A_dataset\.json, B_dataset\.json"):
        description_file(tmp_path)
    (tmp_path / "dataset.json").touch()
    assert description_file(tmp_path).name == "dataset.json"
    with pytest.raises(MissingFile):
        description_file(tmp_path / "missing")
