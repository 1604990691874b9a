"""The registry of converters, and one that another package adds to the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from outside_packages import run_python, write_package

from llmreg.data.converters.converter import CONVERTERS, RawImage, check_download, new_dataset_folder, write_raw_dataset
from llmreg.data.dataset import Pair, load_dataset
from llmreg.errors import BadArgument, BadDownload, UserError


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


DESCRIPTION = {
    "name": "Toy",
    "modality": {"0": "MR", "1": "CT"},
    "registration_direction": {"fixed": 0, "moving": 1},
    "pairings": "intra_subject",
    "labels": {"1": "liver"},
}


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("llmreg_raw", str(tmp_path / "raw"))
    return tmp_path / "raw"


@pytest.fixture
def images(tmp_path: Path) -> list[RawImage]:
    """Four subjects with both modalities, of which the fixed images have a label map and the moving ones a mask."""
    names = [f"Toy_{subject:04d}_{modality:04d}" for subject in (1, 2, 3, 4) for modality in (0, 1)]
    for name in names:
        voxels = np.full((4, 4, 4), int(name[4:8]), np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / f"{name}.nii.gz"))
    files = {name: tmp_path / f"{name}.nii.gz" for name in names}
    return [
        RawImage(name, files[name], label=files[name])
        if name.endswith("_0000")
        else RawImage(name, files[name], mask=files[name])
        for name in names
    ]


def pair(subject: int) -> Pair:
    return Pair(f"Toy_{subject:04d}_0000", f"Toy_{subject:04d}_0001")


def test_cases_pairs_and_tables_are_those_that_were_given(raw: Path, images: list[RawImage]) -> None:
    folder = new_dataset_folder(4, "Toy")
    write_raw_dataset(folder, images, DESCRIPTION, validation=[pair(3)], test=[pair(4)])
    dataset = load_dataset(folder)
    assert (dataset.registration_val, dataset.registration_test) == ((pair(3),), (pair(4),))
    assert dataset.held_out == {name for p in (pair(3), pair(4)) for name in (p.fixed, p.moving)}
    assert [bool(case.label) for case in dataset.cases] == [True, False] * 4
    assert [bool(case.mask) for case in dataset.cases] == [False, True] * 4
    for image in images:
        assert (folder / "imagesTr" / f"{image.name}.nii.gz").samefile(image.image)
    # The fixed image comes first.
    assert (folder / "test_pairs.csv").read_text().splitlines() == [
        "fixed,moving",
        "imagesTr/Toy_0004_0000.nii.gz,imagesTr/Toy_0004_0001.nii.gz",
    ]


def test_other_images_of_a_held_out_subject_are_left_out(raw: Path, images: list[RawImage]) -> None:
    folder = new_dataset_folder(5, "Toy")
    write_raw_dataset(
        folder, images, DESCRIPTION | {"pairings": "unpaired"}, test=[Pair("Toy_0001_0000", "Toy_0002_0001")]
    )
    assert sorted(path.name[4:13] for path in (folder / "imagesTr").iterdir()) == [
        "0001_0000",
        "0002_0001",
        "0003_0000",
        "0003_0001",
        "0004_0000",
        "0004_0001",
    ]


def test_an_id_is_used_once_and_has_three_digits(raw: Path, images: list[RawImage]) -> None:
    (raw / "Dataset004_Other").mkdir(parents=True)
    with pytest.raises(BadArgument, match="Dataset004_Other") as refusal:
        new_dataset_folder(4, "Toy")
    assert refusal.value.argument == "dataset_id"
    with pytest.raises(UserError, match="1000"):
        new_dataset_folder(1000, "Toy")
    with pytest.raises(BadDownload):
        check_download(raw / "nothing")


def test_nothing_is_left_of_a_dataset_that_cannot_be_loaded(raw: Path, images: list[RawImage]) -> None:
    with pytest.raises(UserError):
        write_raw_dataset(raw / "Dataset004_Toy", images, DESCRIPTION | {"labels": {"1": 2.5}})
    assert list(raw.iterdir()) == []
