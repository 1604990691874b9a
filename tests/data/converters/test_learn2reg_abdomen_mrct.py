"""The converter on small files in the layout of the AbdomenMRCT download."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from llmreg.commands.convert_dataset import main
from llmreg.data.converters import converter
from llmreg.data.converters.converter import read_protocol
from llmreg.data.converters.learn2reg_abdomen_mrct import PAPER_FILE, make_paper_protocol
from llmreg.data.dataset import Dataset, Pair, load_dataset, pairs_among
from llmreg.data.splits import make_splits
from llmreg.errors import UserError
from llmreg.inference.pair_inputs import find_pairs

# A table of pairs needs nothing of the plans but the numbers of the modalities.
ANY_PLANS = SimpleNamespace(normalization={0: None, 1: None})

PAIRED = 8
ABDOMEN = "learn2reg-abdomen-mrct"


def case(subject: int, modality: int) -> str:
    return f"AbdomenMRCT_{subject:04d}_{modality:04d}"


def names_of(mr: int, ct: int) -> list[str]:
    """Name so many images of each modality: eight people have both, all others have one."""
    paired_names = [case(subject, modality) for subject in range(1, PAIRED + 1) for modality in (0, 1)]
    ct_names = [case(1000 + number, 1) for number in range(ct - PAIRED)]
    return paired_names + ct_names + [case(1500 + number, 0) for number in range(mr - PAIRED)]


def write(folder: Path, names: list[str], kinds: tuple[str, ...] = ("imagesTr", "labelsTr", "masksTr")) -> Path:
    """Write a download of tiny images."""
    folder.mkdir(parents=True, exist_ok=True)
    image = folder / "tiny.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(64, dtype=np.uint8).reshape(4, 4, 4) % 5), str(image))
    for kind in kinds:
        (folder / kind).mkdir(exist_ok=True)
        for name in names:
            os.link(image, folder / kind / f"{name}.nii.gz")
    image.unlink()
    return folder


@pytest.fixture
def download(tmp_path: Path) -> Path:
    return tmp_path / "AbdomenMRCT"


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("llmreg_raw", str(tmp_path / "raw"))
    return tmp_path / "raw"


def training_cases(dataset: Dataset) -> list[str]:
    return [case.name for case in dataset.cases if case.name not in dataset.held_out]


def test_the_papers_protocol_trains_on_36_times_45_pairs_and_tests_on_10(
    download: Path, raw: Path, capsys: Any
) -> None:
    write(download, names_of(46, 55))
    assert main([ABDOMEN, str(download)]) == 0
    assert "1620 pairs to train on, 0 to validate and 10 to test with" in capsys.readouterr().err
    dataset = load_dataset(raw / "Dataset101_AbdomenMRCT")
    assert (dataset.pairing, dataset.fixed_modality, dataset.moving_modality) == ("unpaired", 0, 1)
    assert dataset.labels == {1: "liver", 2: "spleen", 3: "kidney_right", 4: "kidney_left"}
    training = training_cases(dataset)
    assert len(pairs_among(dataset, training)) == 36 * 45 == 1620
    assert len(dataset.registration_test) == 10
    assert len(dataset.held_out) == 20
    assert all(case.label and case.mask for case in dataset.cases)

    # Nobody is on both sides, so that no training image is lost to the rule that a held-out person is not trained on.
    people = {dataset.case(name).subject for name in training}
    assert not people & {dataset.case(name).subject for name in dataset.held_out}
    fold = make_splits(dataset)[0]
    assert sorted([*fold.train, *fold.validation]) == sorted(training)
    subjects = [
        (dataset.case(pair.fixed).subject, dataset.case(pair.moving).subject) for pair in dataset.registration_test
    ]
    assert all(fixed != moving for fixed, moving in subjects)
    # The draw holds people of both kinds.
    assert {fixed for fixed, _ in subjects} & {moving for _, moving in subjects}


def test_the_pairs_to_predict_are_a_table_and_files_are_links(download: Path, raw: Path) -> None:
    write(download, names_of(20, 20))
    (download / "imagesTr" / "._AbdomenMRCT_0001_0000.nii.gz").touch()
    assert main([ABDOMEN, str(download.parent), "-d", "7"]) == 0
    folder = raw / "Dataset007_AbdomenMRCT"
    dataset = load_dataset(folder)
    pairs = find_pairs(folder / "test_pairs.csv", ANY_PLANS)  # type: ignore[arg-type]
    assert [Pair(*(path.name.removesuffix(".nii.gz") for path in (p.fixed, p.moving))) for p in pairs] == list(
        dataset.registration_test
    )
    assert not (folder / "validation_pairs.csv").exists()
    name = f"{case(1, 0)}.nii.gz"
    assert (folder / "imagesTr" / name).samefile(download / "imagesTr" / name)
    assert [path.name for path in raw.iterdir()] == [folder.name]


def test_the_committed_draw_is_what_the_function_makes() -> None:
    protocol = read_protocol(PAPER_FILE)
    assert protocol == make_paper_protocol()
    for order in (protocol["mr_order"], protocol["ct_order"]):
        assert sorted(order) == list(range(1, 101))


def test_other_numbers_than_the_papers_are_said(download: Path, raw: Path, capsys: Any) -> None:
    names = names_of(48, 57)
    write(download, names)
    for name in (case(1500, 0), case(2, 1)):
        (download / "labelsTr" / f"{name}.nii.gz").unlink()
    assert main([ABDOMEN, str(download)]) == 0
    printed = capsys.readouterr().err
    assert "2 images are left out" in printed
    assert "holds 47 MR and 56 CT images with labels; the paper counts 46 and 55" in printed
    dataset = load_dataset(raw / "Dataset101_AbdomenMRCT")
    assert len(dataset.cases) == len(names) - 2
    assert len(pairs_among(dataset, training_cases(dataset))) == 37 * 46


def test_the_challenges_protocol_without_its_description(download: Path, raw: Path) -> None:
    write(download, names_of(10, 11))
    write(download, [case(subject, modality) for subject in (9, 10) for modality in (0, 1)], ("imagesTs", "masksTs"))
    assert main([ABDOMEN, str(download), "--protocol", "learn2reg"]) == 0
    dataset = load_dataset(raw / "Dataset102_AbdomenMRCTLearn2Reg")
    assert dataset.pairing == "intra_subject"
    assert dataset.registration_val == tuple(Pair(case(s, 0), case(s, 1)) for s in (6, 7, 8))
    assert dataset.registration_test == tuple(Pair(case(s, 0), case(s, 1)) for s in (9, 10))
    assert dataset.case(case(9, 0)).label is None
    pairs = pairs_among(dataset, training_cases(dataset))
    assert pairs == [Pair(case(s, 0), case(s, 1)) for s in (1, 2, 3, 4, 5)]
    assert len(find_pairs(dataset.folder / "validation_pairs.csv", ANY_PLANS)) == 3  # type: ignore[arg-type]
    assert len(make_splits(dataset)) == 5


def describe(folder: Path, **keys: Any) -> None:
    """Write the challenge's description, in which these keys replace the usual ones."""
    content: dict[str, Any] = {
        "name": "AbdomenMRCT",
        "pairings": "hybrid",
        "registration_direction": {"fixed": 0, "moving": 1},
        "modality": {"0": "MR", "1": "CT"},
        "labels": {key: {"0": "background", "1": "Liver", "2": "Spleen"} for key in ("0", "1")},
        "training": {"0": [], "1": []},
    }
    (folder / "AbdomenMRCT_dataset.json").write_text(json.dumps(content | keys))


def test_the_challenges_own_description_is_read(download: Path, raw: Path, capsys: Any) -> None:
    write(download, names_of(10, 10))
    pairs = [{"fixed": f"./imagesTr/{case(3, 0)}.nii.gz", "moving": f"./imagesTr/{case(3, 1)}.nii.gz"}]
    describe(download, registration_val=pairs)
    assert main([ABDOMEN, str(download), "--protocol", "learn2reg"]) == 0
    dataset = load_dataset(raw / "Dataset102_AbdomenMRCTLearn2Reg")
    assert dataset.registration_val == (Pair(case(3, 0), case(3, 1)),)
    assert dataset.labels == {1: "Liver", 2: "Spleen"}
    describe(download, registration_val=[{"fixed": 3}])
    assert main([ABDOMEN, str(download), "--protocol", "learn2reg", "-d", "5"]) == 2
    assert "AbdomenMRCT_dataset.json: 'registration_val.0.fixed'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "arguments", "sentence"),
    [
        (None, [], "is not a folder"),
        ([], [], "holds no MR image"),
        ([case(1, 0)], [], "holds no CT image AbdomenMRCT_<subject>_0001.nii.gz"),
        (names_of(9, 20), [], "9 MR and 20 CT images with labels"),
        (names_of(20, 8), [], "20 MR and 8 CT images with labels"),
        (names_of(9, 9)[:15], ["--protocol", "learn2reg"], "AbdomenMRCT_0008_0001.nii.gz of the official validation"),
        (names_of(20, 20), ["-d", "1000"], "more than three digits"),
    ],
)
def test_what_cannot_be_converted_is_said_in_a_sentence(
    names: list[str] | None, arguments: list[str], sentence: str, download: Path, raw: Path, capsys: Any
) -> None:
    if names is not None:
        write(download, names)
    assert main([ABDOMEN, str(download), *arguments]) == 2
    printed = capsys.readouterr().err
    assert sentence in printed
    assert printed.count("\n") == 1
    assert not raw.exists()


def test_people_who_all_have_both_images_are_not_paired_with_themselves(download: Path, raw: Path) -> None:
    write(download, [case(subject, modality) for subject in range(1, 12) for modality in (0, 1)])
    assert main([ABDOMEN, str(download)]) == 0
    dataset = load_dataset(raw / "Dataset101_AbdomenMRCT")
    assert all(pair.fixed[-9:-5] != pair.moving[-9:-5] for pair in dataset.registration_test)
    assert len(training_cases(dataset)) == 2


def test_an_existing_dataset_is_never_overwritten(download: Path, raw: Path, capsys: Any) -> None:
    write(download, names_of(20, 20))
    (raw / "Dataset101_Other").mkdir(parents=True)
    assert main([ABDOMEN, str(download)]) == 2
    assert "Dataset101_Other exists already" in capsys.readouterr().err
    assert main([ABDOMEN, str(download), "-d", "5"]) == 0
    before = (raw / "Dataset005_AbdomenMRCT" / "dataset.json").read_text()
    assert main([ABDOMEN, str(download), "-d", "5", "--protocol", "learn2reg"]) == 2
    assert "Dataset005_AbdomenMRCT exists already: remove it" in capsys.readouterr().err
    assert (raw / "Dataset005_AbdomenMRCT" / "dataset.json").read_text() == before


def test_without_a_place_for_raw_data_nothing_is_done(
    download: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(download, names_of(20, 20))
    for variable in ("llmreg_raw", "llmreg_home"):
        monkeypatch.delenv(variable, raising=False)
    assert main([ABDOMEN, str(download)]) == 2
    assert "llmreg_raw is not set" in capsys.readouterr().err


def test_files_are_copied_where_links_are_forbidden(download: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(download, names_of(20, 20))

    def refuse_link(*arguments: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(converter.os, "link", refuse_link)
    assert main([ABDOMEN, str(download)]) == 0
    copied_file = raw / "Dataset101_AbdomenMRCT" / "imagesTr" / f"{case(1, 0)}.nii.gz"
    original = download / "imagesTr" / copied_file.name
    assert not copied_file.samefile(original)
    assert copied_file.read_bytes() == original.read_bytes()


def test_nothing_is_left_of_a_conversion_that_failed(
    download: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(download, names_of(20, 20))

    def refuse(folder: Path) -> None:
        raise UserError("It cannot be read back.")

    monkeypatch.setattr(converter, "load_dataset", refuse)
    assert main([ABDOMEN, str(download)]) == 2
    assert not list(raw.iterdir())
