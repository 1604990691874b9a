from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from llmreg.commands import report
from llmreg.commands.evaluate import main
from llmreg.errors import UserError
from llmreg.evaluation.evaluate import evaluate_folder
from llmreg.evaluation.pair_scores import evaluate_pair
from llmreg.evaluation.summary import summarise, write_results
from llmreg.evaluation.table import format_summary
from llmreg.geometry.field import DisplacementField, jacobian_determinant
from llmreg.geometry.grid import Grid
from llmreg.geometry.labels import resample_labels
from llmreg.report.content import read_source
from llmreg.report.shown_predictions import read_scores

SPACING = (1.5, 2.0, 1.0)
SHIFT = np.array([3.0, -2.0, 2.0])  # mm, whole voxels


def label_image(shift_mm: np.ndarray | None = None, flipped: bool = False) -> sitk.Image:
    """Two touching boxes; ``flipped`` stores the same anatomy on a grid with another direction and margin."""
    array = np.zeros((20, 18, 22), dtype=np.uint8)
    array[6:13, 5:11, 6:10], array[6:13, 5:11, 10:15] = 1, 4
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING)
    image.SetOrigin((-10.0, 5.0, 30.0) if shift_mm is None else (np.array([-10.0, 5.0, 30.0]) + shift_mm).tolist())
    return sitk.ConstantPad(sitk.DICOMOrient(image, "RAI"), [3, 0, 1], [0, 2, 0]) if flipped else image


def constant_field(image: sitk.Image, vector: np.ndarray) -> DisplacementField:
    grid = Grid.from_image(image)
    return DisplacementField(np.broadcast_to(vector, (*grid.shape, 3)).astype(np.float32), grid)


def plain_dice(a: np.ndarray, b: np.ndarray, label: int) -> float:
    return 2 * np.sum((a == label) & (b == label)) / (np.sum(a == label) + np.sum(b == label))


@pytest.mark.parametrize("flipped", [False, True])
def test_right_translation_scores_perfectly(flipped: bool) -> None:
    fixed, moving = label_image(), label_image(SHIFT, flipped)
    rows = evaluate_pair(fixed, moving, constant_field(fixed, SHIFT), {1: "a", 4: "b"})
    assert [(row["label"], row["name"]) for row in rows] == [(1, "a"), (4, "b")]
    resampled = sitk.GetArrayFromImage(
        sitk.Resample(moving, fixed, sitk.Transform(3, sitk.sitkIdentity), sitk.sitkNearestNeighbor)
    )
    for row in rows:
        expected = plain_dice(resampled, sitk.GetArrayFromImage(fixed), row["label"])
        assert row["initial_dice"] == pytest.approx(expected)
        assert row["dice"] == 1 > row["initial_dice"]
        assert row["hd95_mm"] == 0 < row["initial_hd95_mm"]
        assert row["folding_percent"] == 0
        assert row["sdlogj"] == pytest.approx(0, abs=1e-4) == row["sdlogj_learn2reg"]
        assert "prealigned_dice" not in row


def test_identity_field_changes_nothing_and_prealignment_counts() -> None:
    fixed, moving = label_image(), label_image(SHIFT)
    identity = constant_field(fixed, np.zeros(3))
    rows = evaluate_pair(fixed, moving, identity, initial=sitk.TranslationTransform(3, SHIFT.tolist()))
    assert [row["name"] for row in rows] == ["1", "4"]
    for row in rows:
        assert row["dice"] == row["initial_dice"]
        assert row["hd95_mm"] == row["initial_hd95_mm"]
        assert row["prealigned_dice"] == 1
        assert row["prealigned_hd95_mm"] == 0


def test_only_annotated_labels_count() -> None:
    fixed = label_image()
    field = constant_field(fixed, np.zeros(3))
    table = {1: "a", 4: "b", 7: "absent"}
    assert [r["label"] for r in evaluate_pair(fixed, fixed, field, table, annotated={4, 7})] == [4, 7]
    assert evaluate_pair(fixed, fixed, field, table, annotated=set()) == []
    last = evaluate_pair(fixed, fixed, field, table)[-1]
    assert np.isnan([last["dice"], last["initial_dice"], last["hd95_mm"]]).all()


def test_a_structure_that_the_field_loses_scores_zero_but_one_out_of_view_is_not_counted() -> None:
    fixed = label_image()
    away = constant_field(fixed, np.array([500.0, 0, 0]))
    rows = evaluate_pair(fixed, fixed, away)
    assert [row["dice"] for row in rows] == [0, 0]
    assert np.isnan([row["hd95_mm"] for row in rows]).all()
    partial = sitk.GetImageFromArray(np.where(sitk.GetArrayFromImage(fixed) == 4, 0, sitk.GetArrayFromImage(fixed)))
    partial.CopyInformation(fixed)
    rows = evaluate_pair(fixed, partial, constant_field(fixed, np.zeros(3)), {1: "a", 4: "b"})
    assert [row["dice"] for row in rows] == [1, pytest.approx(np.nan, nan_ok=True)]


def test_linear_interpolation_is_of_labels_alone() -> None:
    fixed = label_image()
    half = constant_field(fixed, np.array([0.4, 0.9, 0.45]))
    nearest, linear = (evaluate_pair(fixed, fixed, half, interpolation=how) for how in ("nearest", "linear"))
    warped = sitk.GetArrayFromImage(resample_labels(fixed, half.grid, half, "linear"))
    for one, other in zip(nearest, linear, strict=True):
        assert other["dice"] == pytest.approx(plain_dice(warped, sitk.GetArrayFromImage(fixed), one["label"]))
        assert other["dice"] != one["dice"]
        assert {k: v for k, v in one.items() if "l2r" in k} == {k: v for k, v in other.items() if "l2r" in k}


def test_folding_of_the_interior_leaves_out_two_layers() -> None:
    fixed = label_image()
    field = constant_field(fixed, np.zeros(3))
    # The layer at x = 1 is carried over its neighbours.
    field.vectors[..., 1, 0] += 2.1 * SPACING[0]
    row = evaluate_pair(fixed, fixed, field)[0]
    determinant = jacobian_determinant(field)
    for column, margin in (("folding_percent", 1), ("folding_interior_percent", 2)):
        inner = determinant[margin:-margin, margin:-margin, margin:-margin]
        assert row[column] == pytest.approx(100 * np.mean(inner <= 0))
    assert row["folding_percent"] != row["folding_interior_percent"]


def test_float_label_maps_are_rounded() -> None:
    fixed = label_image()
    noisy = sitk.Cast(fixed, sitk.sitkFloat32) - 1e-5
    assert [row["dice"] for row in evaluate_pair(noisy, fixed, constant_field(fixed, np.zeros(3)))] == [1, 1]


@pytest.mark.parametrize(
    ("matrix", "folded"),
    [
        (np.array([[1.1, 0.2, 0.0], [0.0, 0.9, -0.1], [0.05, 0.0, 1.2]]), 0.0),
        (np.diag([-1.0, 1.0, 1.0]), 100.0),
    ],
)
def test_affine_field(matrix: np.ndarray, folded: float) -> None:
    fixed = label_image(flipped=True)
    grid = Grid.from_image(fixed)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), -1)[..., ::-1]
    points = grid.index_to_physical(index)
    centre = points.reshape(-1, 3).mean(0)
    vectors = (points - centre) @ (matrix - np.eye(3)).T
    field = DisplacementField(vectors.astype(np.float32), grid)
    inside = jacobian_determinant(field)[1:-1, 1:-1, 1:-1]
    np.testing.assert_allclose(inside, np.linalg.det(matrix), rtol=1e-4)
    row = evaluate_pair(fixed, fixed, field)[0]
    assert row["folding_percent"] == folded
    assert row["sdlogj"] == pytest.approx(0, abs=1e-3)


def test_another_grid_is_refused() -> None:
    fixed = label_image()
    with pytest.raises(ValueError, match="grid"):
        evaluate_pair(fixed, fixed, constant_field(label_image(SHIFT), np.zeros(3)))


# ---- summary and files ------------------------------------------------------------------------------------------


def rows_of_two_pairs() -> list[dict[str, object]]:
    scores = {"p": (0.6, 0.8), "q": (0.5, np.nan)}
    return [
        {
            "pair_id": pair,
            "label": label,
            "name": name,
            "initial_dice": dice / 2,
            "dice": dice,
            "initial_hd95_mm": 4.0,
            "hd95_mm": 2.0,
            "folding_percent": folded,
            "sdlogj": 0.1,
            "sdlogj_learn2reg": 0.02,
        }
        for (pair, values), folded in zip(scores.items(), (1.0, 2.0), strict=True)
        for (label, name), dice in zip(((1, "a"), (4, "b")), values, strict=True)
    ]


def test_summary_is_over_pairs_and_ignores_what_does_not_count() -> None:
    summary = summarise(pd.DataFrame(rows_of_two_pairs()))
    assert summary["num_pairs"] == 2
    assert summary["metrics"]["dice"] == pytest.approx({"mean": 0.6, "sd": np.std([0.7, 0.5], ddof=1), "num_pairs": 2})
    assert summary["metrics"]["folding_percent"]["mean"] == pytest.approx(1.5)
    assert summary["labels"]["1"]["dice"] == pytest.approx(0.55)
    assert summary["labels"]["4"] == {
        "name": "b",
        "num_pairs": 1,
        "initial_dice": 0.4,
        "dice": 0.8,
        "initial_hd95_mm": 4.0,
        "hd95_mm": 2.0,
    }
    assert summary["num_lost"] == 0
    text = format_summary(summary)
    assert "60.00 +- 14.14" in text
    assert "prealigned" not in text


def test_results_are_written(tmp_path: Path) -> None:
    rows = rows_of_two_pairs()
    rows[0] |= {"dice": 0.0, "hd95_mm": np.nan}
    summary = write_results(rows, tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "metrics.csv")
    assert len(table) == 4
    assert list(table.columns[:3]) == ["pair_id", "label", "name"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    assert summary["num_lost"] == 1
    assert "1 structures vanished" in format_summary(summary)
    single = write_results(rows[2:], tmp_path / "one")
    assert single["metrics"]["dice"]["sd"] is None
    assert "NaN" not in (tmp_path / "one" / "summary.json").read_text()
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == ["metrics.csv", "summary.json"]


# ---- folders and the command --------------------------------------------------------------------------------------


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
    listed = json.loads((predictions / "predict.json").read_text())
    for role, shift in (("fixed", 0 * SHIFT), ("moving", SHIFT)):
        np.savetxt(predictions / f"{role}.csv", np.array([[0.0, 10, 35], [2, 12, 38]]) + shift, delimiter=",")
        listed["pairs"][0][f"{role}_points"] = f"{role}.csv"
    (predictions / "predict.json").write_text(json.dumps(listed))
    summary = evaluate_folder(predictions, dataset / "labelsTr", tmp_path / "out", 1)
    table = pd.read_csv(tmp_path / "out" / "metrics.csv")
    whole = np.linalg.norm(SHIFT)
    for column, value in {"initial_tre_mm": whole, "prealigned_tre_mm": 0, "tre_mm": 0, "tre_l2r": 0}.items():
        assert table[column].tolist() == pytest.approx([value, value, np.nan], abs=0.05, nan_ok=True)
        assert summary["metrics"][column]["num_pairs"] == 1
    assert "TRE (mm)" in format_summary(summary)
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
    """Without label maps; of the second pair, whose points were to be moved, there are the fixed landmarks only."""
    predictions, dataset = folders
    listed = json.loads((predictions / "predict.json").read_text())
    for pair in listed["pairs"]:
        pair |= {f"{role}_path": str(dataset / "imagesTr" / f"{pair[role]}.nii.gz") for role in ("fixed", "moving")}
    (predictions / "predict.json").write_text(json.dumps(listed))
    landmarks = tmp_path / "landmarks"
    landmarks.mkdir()
    for name, shift in (("Boxes_0001_0000", 0 * SHIFT), ("Boxes_0001_0001", SHIFT)):
        np.savetxt(landmarks / f"{name}.csv", np.array([[0.0, 10, 35], [2, 12, 38]]) + shift, delimiter=",")
    command = ["-i", str(predictions), "--keypoints", str(landmarks), "--num_processes", "1"]
    assert main(command) == 2
    assert "Boxes_0001_0000 has no label map in predict.json" in capsys.readouterr().err

    listed["pairs"][1]["fixed_points"] = str(landmarks / "Boxes_0001_0000.csv")
    (predictions / "predict.json").write_text(json.dumps({"pairs": listed["pairs"][:1]}))
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "TRE (mm)" in told
    assert "Dice" not in told.split("metrics.csv")[0]
    table = pd.read_csv(predictions / "metrics.csv")
    assert table["tre_mm"].tolist() == pytest.approx([0], abs=1e-5)
    assert table["initial_tre_mm"].tolist() == pytest.approx([np.linalg.norm(SHIFT)])
    assert table[["label", "dice"]].isna().all(axis=None)
    assert table["folding_percent"].tolist() == [0]
    (case,) = json.loads((predictions / "learn2reg.json").read_text())["cases"].values()
    assert sorted(case) == ["sdlogj", "tre"]
    # The report says what pre-alignment brought, as far as landmarks tell.
    stages = {title: one["tre_mm"].tolist() for title, one in read_source(predictions).by_pair.items()}
    assert stages.keys() == {"Initial", "Pre-aligned", "Registered"}
    assert stages["Pre-aligned"] == pytest.approx([0], abs=1e-5)

    # Beside a pair with label maps.
    for role in ("fixed", "moving"):
        listed["pairs"][1][f"{role}_label"] = str(dataset / "labelsTr" / f"{listed['pairs'][1][role]}.nii.gz")
    (predictions / "predict.json").write_text(json.dumps(listed))
    assert main(command) == 0
    assert "no TRE, because Boxes_0002_0001 has no landmarks" in capsys.readouterr().err
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
    listed = json.loads((predictions / "predict.json").read_text())
    for pair in listed["pairs"]:
        pair["fixed_label"] = str(dataset / "labelsTr" / f"{pair['fixed']}.nii.gz")
        pair["moving_label"] = f"../{dataset.name}/labelsTr/{pair['moving']}.nii.gz"
    (predictions / "predict.json").write_text(json.dumps(listed))
    again = evaluate_folder(predictions, None, tmp_path / "b", 1)
    assert again.pop("predictions_sha256") != first.pop("predictions_sha256")
    assert again == first
    # What is asked for counts, whatever was known when the pairs were predicted.
    for pair in listed["pairs"]:
        pair["fixed_label"] = str(dataset / "labelsTr" / "Boxes_0002_0001.nii.gz")
    (predictions / "predict.json").write_text(json.dumps(listed))
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
    found = evaluate_folder(predictions, link, tmp_path / "out", 1)
    assert {label: own["name"] for label, own in found["labels"].items()} == {"1": "box", "4": "other"}
    # Of the second moving image the other alone is annotated.
    assert found["labels"]["1"]["num_pairs"] == 1


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
    listed = json.loads((predictions / "predict.json").read_text())
    listed["failed"] = [{"pair_id": "the third", "failed": "it was broken"}]
    (predictions / "predict.json").write_text(json.dumps(listed))
    assert main(["-i", str(predictions), "-l", str(dataset), "--num_processes", "1"]) == 0
    assert "count in nothing: the third." in capsys.readouterr().out
    assert json.loads((predictions / "summary.json").read_text())["failed"] == ["the third"]


def test_without_a_dataset_the_ids_found_are_used(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, dataset = folders
    (dataset / "dataset.json").unlink()
    summary = evaluate_folder(predictions, dataset / "labelsTr", tmp_path / "out", 1)
    assert {label: found["name"] for label, found in summary["labels"].items()} == {"1": "1", "4": "4"}


def test_a_dataset_json_of_another_kind_leaves_the_ids_found(
    folders: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    predictions, dataset = folders
    (dataset / "dataset.json").write_text('{"channel_names": {"0": "MR"}, "numTraining": 3}')
    summary = evaluate_folder(predictions, dataset / "labelsTr", tmp_path / "out", 1)
    assert {label: found["name"] for label, found in summary["labels"].items()} == {"1": "1", "4": "4"}
    assert "Label names are unknown" in caplog.text


def test_command(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    predictions, dataset = folders
    assert main(["-i", str(predictions), "-l", str(dataset / "labelsTr"), "--num_processes", "1"]) == 0
    printed = capsys.readouterr().out
    assert "Dice initial" in printed
    assert "Dice registered" in printed
    assert "box" in printed
    assert (predictions / "metrics.csv").is_file()
    assert (predictions / "summary.json").is_file()


@pytest.mark.parametrize(
    "missing",
    [
        "folder",
        "predict.json",
        "not ours",
        "no pairs",
        "labels folder",
        "field",
        "label",
        "no labels",
        "prealignment",
        "broken field",
        "broken label",
        "grid",
        "keypoints folder",
        "keypoints of none",
        "keypoints of one",
        "named keypoints",
    ],
)
def test_bad_input_gives_one_sentence_and_code_2(
    folders: tuple[Path, Path], missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions, dataset = folders
    arguments = ["-i", str(predictions), "-l", str(dataset / "labelsTr"), "--num_processes", "1"]
    field = predictions / "disp_Boxes_0001_0000_Boxes_0002_0001.nii.gz"
    label = dataset / "labelsTr" / "Boxes_0002_0001.nii.gz"
    match missing:
        case "folder":
            arguments[1] += "_not_there"
        case "predict.json":
            (predictions / "predict.json").unlink()
        case "not ours":
            (predictions / "predict.json").write_text('{"pairs": [{"fixed": 3}]}')
        case "no pairs":
            (predictions / "predict.json").write_text('{"pairs": []}')
        case "labels folder":
            arguments[3] += "_not_there"
        case "field":
            field.unlink()
        case "label":
            label.unlink()
        case "no labels":
            del arguments[2:4]
        case "prealignment":
            (predictions / "prealign.tfm").write_text("nonsense")
        case "broken field":
            field.write_bytes(field.read_bytes()[: field.stat().st_size // 2])
        case "broken label":
            label.write_bytes(b"nonsense")
        case "keypoints folder":
            arguments += ["--keypoints", str(predictions / "not_there")]
        case "keypoints of none":
            arguments += ["--keypoints", str(predictions)]
        case "keypoints of one":
            arguments += ["--keypoints", str(predictions)]
            (predictions / "Boxes_0002_0001.csv").write_text("1,2,3\n")
        case "named keypoints":
            listed = json.loads((predictions / "predict.json").read_text())
            listed["pairs"][0]["fixed_points"] = "not_there.csv"
            (predictions / "predict.json").write_text(json.dumps(listed))
        case "grid":
            moved = sitk.ReadImage(str(field))
            moved.SetOrigin((0, 0, 0))
            sitk.WriteImage(moved, str(field))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    sentences = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1
    assert "Traceback" not in error
    assert not (predictions / "metrics.csv").exists()
    assert not (predictions / "summary.json").exists()


def test_label_map_in_place_is_named_in_the_error(folders: tuple[Path, Path]) -> None:
    predictions, dataset = folders
    (dataset / "labelsTr" / "Boxes_0001_0001.nii.gz").unlink()
    with pytest.raises(UserError, match=r"Boxes_0001_0001\.nii\.gz does not exist"):
        evaluate_folder(predictions, dataset / "labelsTr", None, 1)
