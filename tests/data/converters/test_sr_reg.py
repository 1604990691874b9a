"""SR-Reg, MambaMorph's brains: 180 subjects with aligned MR and CT and one segmentation for both."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from llmreg.commands.convert_dataset import main
from llmreg.data.case_images import verify_dataset_integrity
from llmreg.data.converters.converter import read_protocol
from llmreg.data.converters.sr_reg import (
    PROTOCOL_FILE,
    Options,
    convert,
    make_protocol,
    mambamorph_pairs,
    structure_name,
)
from llmreg.data.dataset import load_dataset, pairs_among
from llmreg.data.splits import make_splits
from llmreg.errors import BadArgument, BadDownload, UnreadableFile, UserError
from llmreg.inference.pair_inputs import find_pairs


def test_names_are_those_of_freesurfers_table() -> None:
    assert structure_name(17) == "Left-Hippocampus"
    assert structure_name(53) == "Right-Hippocampus"
    assert structure_name(16) == "Brain-Stem"
    # The right side's ids are the left side's plus 36 to 41, so each name has a partner.
    assert structure_name(2).removeprefix("Left-") == structure_name(41).removeprefix("Right-")
    assert structure_name(28).removeprefix("Left-") == structure_name(60).removeprefix("Right-")


def test_another_structure_is_called_by_its_id() -> None:
    assert structure_name(77) == "FreeSurfer-77"


# A table of pairs needs nothing of the plans but the numbers of the modalities.
ANY_PLANS = SimpleNamespace(normalization={0: None, 1: None})

NAMES = [f"1B{centre}{number:03d}" for centre in "ABC" for number in range(1, 181, 3)]


def write_tiny_image(path: Path, values: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.zeros((4, 4, 4), np.asarray(values).dtype)
    image.ravel()[: len(values)] = values
    sitk.WriteImage(sitk.GetImageFromArray(image), str(path))
    return path


def write(folder: Path, names: list[str], images: str = "vol", segmentations: str = "seg") -> Path:
    """Write a download of tiny images, in which every second person's segmentation has one structure more."""
    originals = [
        write_tiny_image(folder.parent / f"{name}.nii.gz", values)
        for name, values in {
            "mr": [100.0, 200.0],
            "ct": [-1000.0, 40.0],
            "even": [2, 3, 10, 16, 24],
            "odd": [2, 3, 10, 16, 24, 77],
        }.items()
    ]
    (folder / images).mkdir(parents=True, exist_ok=True)
    (folder / segmentations).mkdir(exist_ok=True)
    for number, name in enumerate(names):
        os.link(originals[0], folder / images / f"{name}_mr.nii.gz")
        os.link(originals[1], folder / images / f"{name}_ct.nii.gz")
        os.link(originals[2 + number % 2], folder / segmentations / f"{name}.nii.gz")
    return folder


@pytest.fixture
def download(tmp_path: Path) -> Path:
    return tmp_path / "SR-Reg"


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("llmreg_raw", str(tmp_path / "raw"))
    return tmp_path / "raw"


@pytest.fixture
def split(tmp_path: Path) -> Path:
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"test": ["1BA004", "1BA001"], "validation": ["1BA007", "1BA010"]}))
    return file


def test_150_people_train_10_validate_and_20_test(download: Path, raw: Path) -> None:
    write(download, NAMES)
    assert main(["sr-reg", str(download)]) == 0
    dataset = load_dataset(raw / "Dataset103_SRReg")
    assert (dataset.pairing, dataset.fixed_modality, dataset.moving_modality) == ("inter_subject", 1, 0)
    people: dict[str, set[str]] = {"train": {c.subject for c in dataset.cases if c.name not in dataset.held_out}}
    for name, pairs in (("validation", dataset.registration_val), ("test", dataset.registration_test)):
        people[name] = {dataset.case(case).subject for pair in pairs for case in (pair.fixed, pair.moving)}
        assert len(pairs) == 10
    assert {name: len(subjects) for name, subjects in people.items()} == {"train": 150, "validation": 10, "test": 20}
    assert sum(len(subjects) for subjects in people.values()) == len(set.union(*people.values())) == 180
    # A test person's image that no pair uses is left out too, so that nothing is learned from it.
    assert len(dataset.cases) == 2 * 150 + 2 * 10 + 20 == len(list((dataset.folder / "imagesTr").iterdir()))
    assert len(pairs_among(dataset, [c.name for c in dataset.cases if c.name not in dataset.held_out])) == 150 * 149
    fold = make_splits(dataset)[0]
    assert {dataset.case(name).subject for name in (*fold.train, *fold.validation)} == people["train"]

    subjects = json.loads((dataset.folder / "dataset.json").read_text())["subjects"]
    assert subjects["0001"] == "1BA001"
    assert [subjects[f"{n:04d}"] for n in read_protocol(PROTOCOL_FILE)["test"]] == sorted(
        subjects[subject] for subject in people["test"]
    )
    assert len(find_pairs(dataset.folder / "test_pairs.csv", ANY_PLANS)) == 10  # type: ignore[arg-type]


def test_labels_are_those_that_occur_and_one_segmentation_serves_both_images(
    download: Path, raw: Path, split: Path
) -> None:
    write(download, NAMES[:8])
    assert main(["sr-reg", str(download), "--split", str(split), "-d", "3"]) == 0
    dataset = load_dataset(raw / "Dataset003_SRReg")
    assert dataset.labels == {
        2: "Left-Cerebral-White-Matter",
        3: "Left-Cerebral-Cortex",
        10: "Left-Thalamus",
        16: "Brain-Stem",
        24: "CSF",
        77: "FreeSurfer-77",
    }
    mr, ct = (dataset.case(f"SRReg_0005_{modality:04d}") for modality in (0, 1))
    assert mr.image.samefile(download / "vol" / "1BA013_mr.nii.gz")
    assert ct.image.samefile(download / "vol" / "1BA013_ct.nii.gz")
    assert mr.label is not None
    assert ct.label is not None
    assert mr.label.samefile(ct.label)
    verify_dataset_integrity(dataset, 1)


def test_the_test_pairs_are_mambamorphs() -> None:
    np.random.seed(0)  # noqa: NPY002 (as MambaMorph does)
    permuted = np.random.permutation(np.arange(0, 20))  # noqa: NPY002
    names = [f"s{number}" for number in range(20)]
    assert mambamorph_pairs(names) == [(f"s{a}", f"s{b}") for a, b in np.split(permuted, 10)]


def test_lists_of_ones_own_keep_their_order(download: Path, raw: Path, split: Path) -> None:
    write(download, NAMES[:8])
    assert main(["sr-reg", str(download), "--split", str(split)]) == 0
    dataset = load_dataset(raw / "Dataset103_SRReg")
    moving, fixed = mambamorph_pairs(["0002", "0001"])[0]
    assert [(p.moving, p.fixed) for p in dataset.registration_test] == [(f"SRReg_{moving}_0000", f"SRReg_{fixed}_0001")]
    assert [(p.moving[6:10], p.fixed[6:10]) for p in dataset.registration_val] == [("0003", "0004"), ("0004", "0003")]


def test_the_committed_draw_is_what_the_function_makes() -> None:
    protocol = read_protocol(PROTOCOL_FILE)
    assert protocol == make_protocol()
    assert len({*protocol["test"], *protocol["validation"]}) == 30


@pytest.mark.parametrize(("images", "segmentations"), [("volumes_center", "seg_center"), (".", ".")])
def test_folders_of_any_name(images: str, segmentations: str, download: Path, raw: Path, split: Path) -> None:
    write(download, NAMES[:6], images, segmentations)
    (download / "._1BA001_mr.nii.gz").touch()
    assert main(["sr-reg", str(download), "--split", str(split)]) == 0
    assert len({case.subject for case in load_dataset(raw / "Dataset103_SRReg").cases}) == 6


def refuse(source: Path, split: Path | None = None) -> UserError:
    with pytest.raises((BadDownload, UnreadableFile)) as refusal:
        convert(source, Options(split=split))
    return refusal.value


def test_what_cannot_be_converted_names_the_file(download: Path, raw: Path, split: Path) -> None:
    assert refuse(download).path == download
    download.mkdir()
    assert "_mr.nii.gz" in refuse(download).problem
    write(download, NAMES[:8])
    assert {"8", "180"} <= set(re.findall("[0-9]+", refuse(download).problem))

    hidden = download / "hidden"
    for file, kind in (("vol/1BA007_ct", "CT"), ("vol/1BA010_mr", "MR"), ("seg/1BA004", "segmentation")):
        (download / f"{file}.nii.gz").rename(hidden)
        assert {kind, file[4:10]} <= set(refuse(download).problem.split())
        hidden.rename(download / f"{file}.nii.gz")
    segmentation = download / "seg" / "1BA004.nii.gz"
    segmentation.unlink()
    write_tiny_image(segmentation, [0.5])
    assert refuse(download, split).path == segmentation
    twin = write_tiny_image(download / "other" / "1BA004.nii.gz", [2])
    assert str(twin) in refuse(download).problem + str(refuse(download).path)
    assert not raw.exists()


@pytest.mark.parametrize(
    ("division", "named"),
    [
        ({"test": ["1BA001", "nobody"]}, "nobody"),
        ({"test": ["1BA001", "1BA004"], "validation": ["1BA001", "1BA007"]}, "1BA001 twice"),
        ({"test": ["1BA001"]}, "1 subjects under 'test'"),
        ({"validation": ["1BA001", "1BA004"]}, "0 subjects under 'test'"),
        ({"test": "1BA001"}, "'test'"),
    ],
)
def test_lists_that_cannot_be_used(
    division: dict[str, Any], named: str, download: Path, raw: Path, split: Path
) -> None:
    write(download, NAMES[:6])
    split.write_text(json.dumps(division))
    with pytest.raises(UserError, match=named) as refusal:
        convert(download, Options(split=split))
    assert str(split) in str(refusal.value)


def test_an_existing_dataset_is_never_overwritten(download: Path, raw: Path, split: Path) -> None:
    write(download, NAMES[:6])
    folder = convert(download, Options(split=split))
    with pytest.raises(BadArgument) as refusal:
        convert(download, Options(split=split))
    assert refusal.value.argument == "dataset_id"
    assert folder == raw / "Dataset103_SRReg"
    assert str(folder) in refusal.value.problem
