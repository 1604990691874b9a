"""Folders of predictions, scored from Python and by the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from labelled_boxes import SHIFT, label_image
from tiny_study import check_refusal

from llmreg.commands import report
from llmreg.commands.evaluate import main
from llmreg.evaluation.evaluate import evaluate_folder
from llmreg.report.content import read_source
from llmreg.report.shown_predictions import read_scores


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two pairs: one with the right field, one with the identity; label maps in a dataset's labelsTr."""
    predictions, dataset = tmp_path / "predictions", tmp_path / "Dataset009_Boxes"
    for folder in (predictions, dataset / "imagesTr", dataset / "labelsTr"):
        folder.mkdir(parents=True)
    images = {
        "Boxes_0001_0000": label_image(),
        "Boxes_0001_0001": label_image(SHIFT, flipped=True),
        "Boxes_0002_0001": label_image(SHIFT),
    }
    for name, image in images.items():
        for folder in ("imagesTr", "labelsTr"):
            sitk.WriteImage(image, str(dataset / folder / f"{name}.nii.gz"))
    training = [{"image": f"imagesTr/{name}.nii.gz"} for name in images]
    training[2]["annotated_labels"] = [4]
    content = {
        "modality": {"0": "MR", "1": "CT"},
        "labels": {"box": 1, "other": 4},
        "pairings": "unpaired",
        "training": training,
    }
    (dataset / "dataset.json").write_text(json.dumps(content))

    pairs = []
    for number, (moving, vector) in enumerate((("Boxes_0001_0001", SHIFT), ("Boxes_0002_0001", 0 * SHIFT))):
        fixed = images["Boxes_0001_0000"]
        vectors = np.broadcast_to(vector, (*fixed.GetSize()[::-1], 3)).astype(np.float32)
        field = sitk.GetImageFromArray(vectors, isVector=True)
        field.CopyInformation(fixed)
        name = f"disp_Boxes_0001_0000_{moving}.nii.gz"
        sitk.WriteImage(field, str(predictions / name))
        pairs.append(
            {
                "pair_id": f"pair{number}",
                "fixed": "Boxes_0001_0000",
                "moving": moving,
                "field": name,
                "fixed_path": "x",
                "moving_path": "y",
                "fixed_label": None,
                "moving_label": None,
                "prealignment": None,
            }
        )
    sitk.WriteTransform(sitk.TranslationTransform(3, SHIFT.tolist()), str(predictions / "prealign.tfm"))
    pairs[0]["prealignment"] = "prealign.tfm"
    (predictions / "predict.json").write_text(json.dumps({"pairs": pairs, "model": "ours"}))
    return predictions, dataset


@pytest.mark.parametrize("num_processes", [1, 2])
def test_folder(folders: tuple[Path, Path], tmp_path: Path, num_processes: int) -> None:
    predictions, dataset = folders
    summary = evaluate_folder(predictions, dataset / "labelsTr", tmp_path / "out", num_processes)
    table = pd.read_csv(tmp_path / "out" / "metrics.csv")
    assert table[["pair_id", "label", "name"]].values.tolist() == [
        ["pair0", 1, "box"],
        ["pair0", 4, "other"],
        ["pair1", 4, "other"],
    ]
    assert table["dice"].tolist()[:2] == [1, 1]
    assert table["dice"][2] == table["initial_dice"][2] < 1
    assert table["prealigned_dice"].tolist()[:2] == [1, 1]
    assert table["prealigned_dice"][2] == table["initial_dice"][2]
    assert summary["metrics"]["prealigned_dice"]["num_pairs"] == 2
    assert summary["num_pairs"] == 2


def test_pairs_without_landmarks_or_prealignment(folders: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    """The first pair has landmarks and a pre-alignment that finds them, the second neither."""
    predictions, dataset = folders
    record = json.loads((predictions / "predict.json").read_text())
    for role, shift in (("fixed", 0 * SHIFT), ("moving", SHIFT)):
        np.savetxt(predictions / f"{role}.csv", np.array([[0.0, 10, 35], [2, 12, 38]]) + shift, delimiter=",")
        record["pairs"][0][f"{role}_points"] = f"{role}.csv"
    (predictions / "predict.json").write_text(json.dumps(record))
    summary = evaluate_folder(predictions, dataset / "labelsTr", tmp_path / "out", 1)
    table = pd.read_csv(tmp_path / "out" / "metrics.csv")
    distance = np.linalg.norm(SHIFT)
    for column, value in {"initial_tre_mm": distance, "prealigned_tre_mm": 0, "tre_mm": 0, "tre_l2r": 0}.items():
        assert table[column].tolist() == pytest.approx([value, value, np.nan], abs=0.05, nan_ok=True)
        assert summary["metrics"][column]["num_pairs"] == 1
    for column in ("assd_mm", "hd95_l2r"):
        assert table[column].tolist()[:2] == [0, 0]
        assert table[column][2] == table[f"initial_{column}"][2] == table[f"prealigned_{column}"][2] > 0
    cases = json.loads((tmp_path / "out" / "learn2reg.json").read_text())
    assert cases["name"] == "Dataset009_Boxes"
    assert [("tre" in case, len(case["dice"]["detailed"])) for case in cases["cases"].values()] == [
        (True, 2),
        (False, 2),
    ]


def test_landmarks_alone(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No pair has label maps, and the second pair has landmarks of the fixed image alone."""
    predictions, dataset = folders
    record = json.loads((predictions / "predict.json").read_text())
    for pair in record["pairs"]:
        pair |= {f"{role}_path": str(dataset / "imagesTr" / f"{pair[role]}.nii.gz") for role in ("fixed", "moving")}
    (predictions / "predict.json").write_text(json.dumps(record))
    landmarks = tmp_path / "landmarks"
    landmarks.mkdir()
    for name, shift in (("Boxes_0001_0000", 0 * SHIFT), ("Boxes_0001_0001", SHIFT)):
        np.savetxt(landmarks / f"{name}.csv", np.array([[0.0, 10, 35], [2, 12, 38]]) + shift, delimiter=",")
    command = ["-i", str(predictions), "--landmarks", str(landmarks), "--num_processes", "1"]
    assert main(command) == 2
    assert {"Boxes_0001_0000", "predict.json:"} <= set(capsys.readouterr().err.split())

    record["pairs"][1]["fixed_points"] = str(landmarks / "Boxes_0001_0000.csv")
    (predictions / "predict.json").write_text(json.dumps({"pairs": record["pairs"][:1]}))
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "TRE (mm)" in printed
    assert "Dice" not in printed.split("metrics.csv")[0]
    table = pd.read_csv(predictions / "metrics.csv")
    assert table["tre_mm"].tolist() == pytest.approx([0], abs=1e-5)
    assert table["initial_tre_mm"].tolist() == pytest.approx([np.linalg.norm(SHIFT)])
    assert table[["label", "dice"]].isna().all(axis=None)
    assert table["folding_percent"].tolist() == [0]
    (case,) = json.loads((predictions / "learn2reg.json").read_text())["cases"].values()
    assert sorted(case) == ["sdlogj", "tre"]
    # The report says what pre-alignment brought, as far as landmarks tell.
    stages = {title: scores["tre_mm"].tolist() for title, scores in read_source(predictions).by_pair.items()}
    assert stages.keys() == {"Initial", "Pre-aligned", "Registered"}
    assert stages["Pre-aligned"] == pytest.approx([0], abs=1e-5)

    # The second pair gets label maps.
    for role in ("fixed", "moving"):
        record["pairs"][1][f"{role}_label"] = str(dataset / "labelsTr" / f"{record['pairs'][1][role]}.nii.gz")
    (predictions / "predict.json").write_text(json.dumps(record))
    assert main(command) == 0
    error = capsys.readouterr().err
    assert "TRE" in error
    assert "Boxes_0002_0001" in error
    text = (predictions / "metrics.csv").read_text()
    table = pd.read_csv(predictions / "metrics.csv")
    assert ",4,other," in text
    assert table["label"].tolist() == pytest.approx([np.nan, 4], nan_ok=True)
    assert table["prealigned_tre_mm"].tolist() == pytest.approx([0, np.nan], abs=1e-5, nan_ok=True)
    assert read_scores([predictions])["label"].tolist()[1] == 4
    assert report.main([str(predictions), "--num_processes", "1"]) == 0


def test_dataset_folder_and_paths_in_predict_json_serve_too(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, dataset = folders
    first = evaluate_folder(predictions, dataset, tmp_path / "a", 1)
    record = json.loads((predictions / "predict.json").read_text())
    for pair in record["pairs"]:
        pair["fixed_label"] = str(dataset / "labelsTr" / f"{pair['fixed']}.nii.gz")
        pair["moving_label"] = f"../{dataset.name}/labelsTr/{pair['moving']}.nii.gz"
    (predictions / "predict.json").write_text(json.dumps(record))
    again = evaluate_folder(predictions, None, tmp_path / "b", 1)
    assert again.pop("predictions_sha256") != first.pop("predictions_sha256")
    assert again == first
    # The folder that is asked for comes before the label maps that predict.json names.
    for pair in record["pairs"]:
        pair["fixed_label"] = str(dataset / "labelsTr" / "Boxes_0002_0001.nii.gz")
    (predictions / "predict.json").write_text(json.dumps(record))
    assert evaluate_folder(predictions, dataset / "labelsTr", tmp_path / "c", 1)["metrics"] == first["metrics"]


def test_the_datasets_label_map_is_the_one_that_it_names(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, dataset = folders
    right = evaluate_folder(predictions, dataset, tmp_path / "a", 1)
    (dataset / "labelsTr").rename(dataset / "corrected")
    (dataset / "labelsTr").mkdir()
    content = json.loads((dataset / "dataset.json").read_text())
    for entry in content["training"]:
        name = Path(entry["image"]).name
        entry["label"] = f"corrected/{name}"
        sitk.WriteImage(label_image(2 * SHIFT), str(dataset / "labelsTr" / name))
    (dataset / "dataset.json").write_text(json.dumps(content))
    assert evaluate_folder(predictions, dataset, tmp_path / "b", 1) == right


@pytest.mark.parametrize("target", ["", "labelsTr"])
def test_a_link_to_a_dataset_leads_to_its_label_table(folders: tuple[Path, Path], tmp_path: Path, target: str) -> None:
    predictions, dataset = folders
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "data"
    link.symlink_to(dataset / target)
    summary = evaluate_folder(predictions, link, tmp_path / "out", 1)
    assert {label: scores["name"] for label, scores in summary["labels"].items()} == {"1": "box", "4": "other"}
    # In the second moving image, label 4 alone is annotated.
    assert summary["labels"]["1"]["num_pairs"] == 1


def test_a_datasets_own_landmarks_are_in_voxels(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, dataset = folders
    (dataset / "keypointsTr").mkdir()
    for name, shift in (("Boxes_0001_0000", 0 * SHIFT), ("Boxes_0001_0001", SHIFT)):
        image = sitk.ReadImage(str(dataset / "imagesTr" / f"{name}.nii.gz"))
        places = [
            image.TransformPhysicalPointToContinuousIndex(shift + point) for point in ([0.0, 10, 35], [2, 12, 38])
        ]
        np.savetxt(dataset / "keypointsTr" / f"{name}.csv", places, delimiter=",")
    evaluate_folder(predictions, dataset, tmp_path / "out", 1)
    table = pd.read_csv(tmp_path / "out" / "metrics.csv")
    assert table["tre_mm"].tolist() == pytest.approx([0, 0, np.nan], abs=1e-4, nan_ok=True)
    assert table["initial_tre_mm"][0] == pytest.approx(np.linalg.norm(SHIFT), abs=1e-4)


def test_pairs_that_failed_are_named(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    predictions, dataset = folders
    record = json.loads((predictions / "predict.json").read_text())
    record["failed"] = [{"pair_id": "the third", "failed": "it was broken"}]
    (predictions / "predict.json").write_text(json.dumps(record))
    assert main(["-i", str(predictions), "-l", str(dataset), "--num_processes", "1"]) == 0
    assert "the third" in capsys.readouterr().out
    assert json.loads((predictions / "summary.json").read_text())["failed"] == ["the third"]


def test_without_a_dataset_the_ids_found_are_used(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, dataset = folders
    (dataset / "dataset.json").unlink()
    summary = evaluate_folder(predictions, dataset / "labelsTr", tmp_path / "out", 1)
    assert {label: scores["name"] for label, scores in summary["labels"].items()} == {"1": "1", "4": "4"}


def test_a_dataset_json_of_another_kind_leaves_the_ids_found(
    folders: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    predictions, dataset = folders
    (dataset / "dataset.json").write_text('{"channel_names": {"0": "MR"}, "numTraining": 3}')
    summary = evaluate_folder(predictions, dataset / "labelsTr", tmp_path / "out", 1)
    assert {label: scores["name"] for label, scores in summary["labels"].items()} == {"1": "1", "4": "4"}
    assert str(dataset / "dataset.json") in caplog.text


def test_command(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    predictions, dataset = folders
    assert main(["-i", str(predictions), "-l", str(dataset / "labelsTr"), "--num_processes", "1"]) == 0
    printed = capsys.readouterr().out
    assert "Dice initial" in printed
    assert "Dice registered" in printed
    assert "box" in printed
    assert (predictions / "metrics.csv").is_file()
    assert (predictions / "summary.json").is_file()


def remove_field(predictions: Path, dataset: Path) -> list[str]:
    (predictions / "disp_Boxes_0001_0000_Boxes_0002_0001.nii.gz").unlink()
    return []


def cut_field(predictions: Path, dataset: Path) -> list[str]:
    field = predictions / "disp_Boxes_0001_0000_Boxes_0002_0001.nii.gz"
    field.write_bytes(field.read_bytes()[: field.stat().st_size // 2])
    return []


def move_field(predictions: Path, dataset: Path) -> list[str]:
    field = predictions / "disp_Boxes_0001_0000_Boxes_0002_0001.nii.gz"
    moved = sitk.ReadImage(str(field))
    moved.SetOrigin((0, 0, 0))
    sitk.WriteImage(moved, str(field))
    return []


def break_label(predictions: Path, dataset: Path) -> list[str]:
    (dataset / "labelsTr" / "Boxes_0002_0001.nii.gz").write_bytes(b"nonsense")
    return []


def break_prealignment(predictions: Path, dataset: Path) -> list[str]:
    (predictions / "prealign.tfm").write_text("nonsense")
    return []


def add_a_landmark_of_one(predictions: Path, dataset: Path) -> list[str]:
    (predictions / "Boxes_0002_0001.csv").write_text("1,2,3\n")
    return ["--landmarks", str(predictions)]


@pytest.mark.parametrize(
    "spoil", [remove_field, cut_field, move_field, break_label, break_prealignment, add_a_landmark_of_one]
)
def test_bad_input_gives_one_sentence_and_no_scores(
    folders: tuple[Path, Path], spoil: Callable[[Path, Path], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    predictions, dataset = folders
    more = spoil(predictions, dataset)
    assert main(["-i", str(predictions), "-l", str(dataset / "labelsTr"), "--num_processes", "1", *more]) == 2
    check_refusal(capsys)
    assert not (predictions / "metrics.csv").exists()
    assert not (predictions / "summary.json").exists()
