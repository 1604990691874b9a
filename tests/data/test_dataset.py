from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llmreg.data.dataset import Dataset, Pair, load_dataset, pairs_among
from llmreg.errors import BadDataset, MissingFile, UserError

SHARED = Path(os.environ.get("LLMREG_SHARED", Path(__file__).parents[2] / "shared"))


def names_of(subjects: int, modalities: int = 2, first: int = 1) -> list[str]:
    return [f"Toy_{s:04d}_{m:04d}" for m in range(modalities) for s in range(first, first + subjects)]


def write(folder: Path, names: list[str], file: str = "dataset.json", labelled: bool = True, **keys: Any) -> Path:
    """Write a dataset of empty files, which suffice because load_dataset reads no image."""
    for kind in ["imagesTr", "labelsTr"] if labelled else ["imagesTr"]:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / kind / f"{name}.nii.gz").touch()
    content: dict[str, Any] = {
        "name": "Toy",
        "tensorImageShape": {"0": [8, 8, 8]},
        "modality": {"0": "MR", "1": "CT"},
        "labels": {"background": 0, "liver": 1, "spleen": 2},
        "pairings": "unpaired",
        "training": [{"image": f"./imagesTr/{name}.nii.gz"} for name in names],
    }
    content = {key: value for key, value in (content | keys).items() if value is not None}
    (folder / file).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(("modalities", "direction"), [((2, 0, 1), (0, 1)), ((3,), (3, 3))])
def test_the_first_modality_is_fixed_where_nothing_is_said(
    tmp_path: Path, modalities: tuple[int, ...], direction: tuple[int, int]
) -> None:
    names = [f"Toy_{subject:04d}_{modality:04d}" for subject in (1, 2) for modality in modalities]
    folder = write(tmp_path / "Dataset009_Toy", names, modality={str(m): f"contrast {m}" for m in modalities})
    dataset = load_dataset(folder)
    assert (dataset.fixed_modality, dataset.moving_modality) == direction


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "Dataset007_Toy"


def all_pairs(dataset: Dataset) -> list[Pair]:
    return pairs_among(dataset, [case.name for case in dataset.cases])


def test_list_of_all_modalities_with_found_labels(folder: Path) -> None:
    dataset = load_dataset(write(folder, names_of(2)))
    assert dataset.name == "Dataset007_Toy"
    assert dataset.modalities == {0: "MR", 1: "CT"}
    assert dataset.labels == {1: "liver", 2: "spleen"}
    assert (dataset.fixed_modality, dataset.moving_modality) == (0, 1)
    assert [case.name for case in dataset.of_modality(1)] == ["Toy_0001_0001", "Toy_0002_0001"]
    assert {case.subject for case in dataset.cases} == {"0001", "0002"}
    assert dataset.case("Toy_0001_0001").label == folder / "labelsTr/Toy_0001_0001.nii.gz"
    assert not dataset.held_out


def test_labels_are_optional(folder: Path) -> None:
    dataset = load_dataset(write(folder, names_of(2), labelled=False, labels=None))
    assert dataset.labels == {}
    assert all(case.label is None for case in dataset.cases)


def test_learn2reg_dict_and_prefixed_file(folder: Path) -> None:
    image = "./imagesTr/Toy_000{}_000{}.nii.gz".format
    write(
        folder,
        names_of(2),
        file="Toy_dataset.json",
        training={
            "0": [{"image": image(1, 0), "label": image(1, 0).replace("images", "labels")}],
            "1": [{"image": image(1, 1), "annotated_labels": [2, "liver"]}, image(2, 1)],
        },
        registration_direction={"fixed": "1", "moving": 0},
        labels={"0": {"0": "background", "1": "liver"}, "1": {"0": "background", "1": "liver", "3": "kidney"}},
    )
    with pytest.raises(BadDataset, match="annotated_labels"):  # 2 is in no table
        load_dataset(folder)
    content = json.loads((folder / "Toy_dataset.json").read_text())
    content["training"]["1"][0]["annotated_labels"] = [3, "liver"]
    (folder / "Toy_dataset.json").write_text(json.dumps(content))
    dataset = load_dataset(folder)
    assert (dataset.fixed_modality, dataset.moving_modality) == (1, 0)
    assert dataset.labels == {1: "liver", 3: "kidney"}
    assert dataset.case("Toy_0001_0001").annotated_labels == (1, 3)
    assert all_pairs(dataset) == [Pair("Toy_0001_0001", "Toy_0001_0000"), Pair("Toy_0002_0001", "Toy_0001_0000")]


@pytest.mark.parametrize("labels", [{"0": "background", "1": "liver"}, {"background": 0, "liver": 1}])
def test_label_tables(folder: Path, labels: dict[str, Any]) -> None:
    assert load_dataset(write(folder, names_of(1), labels=labels)).labels == {1: "liver"}


@pytest.mark.parametrize(
    ("pairings", "meaning", "number"),
    [
        ("paired", "intra_subject", 3),
        ("intra_subject", "intra_subject", 3),
        ("unpaired", "unpaired", 9),
        ("inter_subject", "inter_subject", 6),
        (None, "intra_subject", 3),
        ([["Toy_0001_0000", "Toy_0003_0001"]], "explicit", 1),
    ],
)
def test_pairings(folder: Path, pairings: Any, meaning: str, number: int) -> None:
    dataset = load_dataset(write(folder, names_of(3), pairings=pairings))
    pairs = all_pairs(dataset)
    assert (dataset.pairing, len(pairs)) == (meaning, number)
    assert pairs_among(dataset, [case.name for case in reversed(dataset.cases)]) == pairs


def test_one_modality_is_its_own_partner(folder: Path) -> None:
    dataset = load_dataset(write(folder, names_of(3, 1), modality={"0": "MR"}, pairings=None))
    assert (dataset.fixed_modality, dataset.moving_modality, dataset.pairing) == (0, 0, "inter_subject")
    assert len(all_pairs(dataset)) == 6


@pytest.mark.parametrize("keys", [("fixed", "moving"), ("0", "1")])
def test_training_paired_images(folder: Path, keys: tuple[str, str]) -> None:
    paths = ("./imagesTr/Toy_0001_0000.nii.gz", "./imagesTr/Toy_0002_0001.nii.gz")
    paired = [dict(zip(keys, paths, strict=True))]
    dataset = load_dataset(write(folder, names_of(2), pairings="paired", training_paired_images=paired))
    assert dataset.pairing == "explicit"  # different subjects
    assert all_pairs(dataset) == [Pair("Toy_0001_0000", "Toy_0002_0001")]


def test_listed_pairs_of_one_subject_in_another_direction_are_kept(folder: Path) -> None:
    paired = [
        {
            "fixed": f"./imagesTr/Toy_0001_000{modality}.nii.gz",
            "moving": f"./imagesTr/Toy_0001_000{1 - modality}.nii.gz",
        }
        for modality in (0, 1)
    ]
    dataset = load_dataset(write(folder, names_of(1), pairings="paired", training_paired_images=paired))
    assert len(all_pairs(dataset)) == 2
    dataset = load_dataset(write(folder, names_of(1), pairings="paired", training_paired_images=paired[:1]))
    assert dataset.pairing == "intra_subject"


def test_registration_val_is_held_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = names_of(3)
    training = [{"image": f"imagesTr/{name}.nii.gz"} for name in names if "_0003_" not in name]
    pair = {"fixed": "./imagesTr/Toy_0003_0000.nii.gz", "moving": "./imagesTr/Toy_0003_0001.nii.gz"}
    hidden = {"fixed": "./imagesTs/Toy_0009_0000.nii.gz", "moving": "./imagesTs/Toy_0009_0001.nii.gz"}
    with caplog.at_level("INFO"):
        dataset = load_dataset(
            write(folder, names, training=training, registration_val=[pair], registration_test=[hidden])
        )
    assert dataset.registration_val == (Pair("Toy_0003_0000", "Toy_0003_0001"),)
    assert dataset.registration_test == ()
    assert dataset.held_out == {"Toy_0003_0000", "Toy_0003_0001"}
    assert dataset.case("Toy_0003_0000").label is not None
    assert "kept out of training" in caplog.text
    assert "Toy_0009_0000" in caplog.text


BAD: list[tuple[dict[str, Any], str]] = [
    ({"modality": None}, "'modality' is missing"),
    ({"modality": "MR"}, "'modality' should be"),
    ({"modality": {"0": "MR", "1": 5}}, r"'modality\.1' should be"),
    ({"modality": {"0": "MR", "1": "CT", "2": "PET"}}, r"'modality\.2' \(PET\)"),
    ({"modality": {"0": "MR"}}, "of modality 1"),
    ({"training": 3}, "'training' should be"),
    ({"training": []}, "'training' is empty"),
    ({"training": [{"label": "x"}]}, r"'training\.0\.image' is missing"),
    ({"training": [7]}, r"'training\.0' should be"),
    ({"training": {"5": []}}, r"'training\.5'"),
    ({"training": {"1": ["./imagesTr/Toy_0001_0000.nii.gz"]}}, r"move it to 'training\.0'"),
    ({"training": ["./imagesTr/Toy_1_0.nii.gz"]}, "4 digits"),
    ({"training": ["./imagesTr/Toy_0099_0000.nii.gz"]}, "does not exist"),
    ({"training": [{"image": "./imagesTr/Toy_0001_0000.nii.gz", "annotated_labels": [9]}]}, "annotated_labels"),
    ({"labels": {"liver": 1, "spleen": 1}}, "twice"),
    ({"labels": {"liver": [1, 2]}}, r"'labels\.liver'"),
    ({"labels": {"0": {"1": "liver"}, "1": {"1": "spleen"}}}, "same structure"),
    ({"labels": ["liver"]}, "'labels' should be"),
    ({"pairings": "sometimes"}, "'pairings' is 'sometimes'"),
    ({"pairings": [{"fixed": "Toy_0001_0000"}]}, r"'pairings\.0\.moving' is missing"),
    ({"pairings": [["Toy_0001_0000", "Toy_0001_0000"]]}, "with itself"),
    ({"pairings": "explicit"}, "training_paired_images"),
    ({"registration_direction": {"fixed": 0, "moving": 4}}, r"registration_direction\.moving"),
    ({"registration_direction": {"fixed": 0, "moving": True}}, r"registration_direction\.moving"),
]


@pytest.mark.parametrize(("keys", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_mistakes_are_one_sentence(folder: Path, keys: dict[str, Any], sentence: str) -> None:
    write(folder, names_of(1))
    content = json.loads((folder / "dataset.json").read_text()) | keys
    content = {key: value for key, value in content.items() if value is not None}
    (folder / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(BadDataset, match=sentence) as refusal:
        load_dataset(folder)
    assert refusal.value.path == folder / "dataset.json"
    assert refusal.value.key.split(".")[0] in content | keys
    assert refusal.value.remedy
    assert "\n" not in str(refusal.value)


def test_named_label_must_exist(folder: Path) -> None:
    entry = {"image": "imagesTr/Toy_0001_0000.nii.gz", "label": "labelsTr/Toy_0001_0000.nii.gz"}
    with pytest.raises(BadDataset) as refusal:
        load_dataset(write(folder, names_of(1), labelled=False, training=[entry]))
    assert refusal.value.key == "training.0.label"


def test_bad_json_and_folders(folder: Path) -> None:
    with pytest.raises(MissingFile):
        load_dataset(folder)
    write(folder, names_of(1), file="a_dataset.json")
    write(folder, names_of(1), file="b_dataset.json")
    with pytest.raises(BadDataset, match="several"):
        load_dataset(folder)
    (folder / "dataset.json").write_text('{"modality": ')
    with pytest.raises(UserError, match="valid JSON"):
        load_dataset(folder)
    (folder / "dataset.json").write_text("[]")
    with pytest.raises(BadDataset, match=r"dataset\.json should be"):
        load_dataset(folder)
    with pytest.raises(BadDataset) as refusal:
        load_dataset(folder.parent / "Toy")
    assert refusal.value.path == folder.parent / "Toy"


@pytest.mark.parametrize(
    ("name", "cases", "pairs"), [("Dataset001_AbdomenMRCT", 17, 30), ("Dataset002_BrainMRCT", 48, 24 * 23)]
)
def test_real_datasets(name: str, cases: int, pairs: int) -> None:
    if not (SHARED / "data" / name).is_dir():
        pytest.skip(f"{SHARED / 'data' / name} is missing")
    dataset = load_dataset(SHARED / "data" / name)
    assert len(dataset.cases) == cases
    assert len(all_pairs(dataset)) == pairs
    assert all(case.label is not None for case in dataset.cases)
