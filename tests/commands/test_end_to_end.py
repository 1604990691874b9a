"""The three commands on a small dataset of our own, with a tiny random language model, and what they refuse."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from safetensors.torch import load_file
from tiny_study import NAME, check_refusal, model, training
from torch.nn.modules.module import register_module_forward_hook

from llmreg.commands import evaluate, fetch_llm, plan, plan_and_preprocess, predict, preprocess, train
from llmreg.inference.case_reader import ImageInput
from llmreg.inference.predictor import Predictor
from llmreg.networks.layers import FieldHead
from llmreg.networks.network_registry import network_settings
from llmreg.plans.plans import read_plans
from llmreg.training.step import Learner


def test_planning_writes_plans_with_reasons_and_volumes_that_fit(environment):
    folder = environment / "preprocessed" / NAME
    plans = read_plans(folder / "plans.json")
    assert set(plans.reasons) >= {"grid", "default_configuration", "prealignment"}
    assert read_plans(folder / "plans_paper.json").training.learning_rate == 1e-4
    record = json.loads(next((folder / f"volumes_{plans.volumes_digest()}").glob("*_0001.json")).read_text())
    assert record["transform"]["stage"] in ("centre", "rigid", "affine", "template")


def test_training_leaves_all_its_files_and_no_frozen_weights(environment):
    fold = model(environment) / "fold_0"
    names = {path.name for path in fold.iterdir()}
    for which in ("latest", "best", "final"):
        assert {f"checkpoint_{which}.safetensors", f"checkpoint_{which}.json"} <= names
    assert {"training_log.jsonl", "progress.png", "validation"} <= names
    assert len((fold / "training_log.jsonl").read_text().splitlines()) == 2
    assert not [name for name in load_file(fold / "checkpoint_final.safetensors") if "base_layer" in name]
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert {"dice", "hd95_mm", "folding_percent"} <= set(summary["metrics"])


def test_two_epochs_with_a_break_equal_two_without(environment, capsys, monkeypatch):
    final = Path("fold_0", "checkpoint_final.safetensors")
    drawn = {"whole": [], "halves": []}
    step = Learner.step
    for name in ("whole", "halves"):
        # Each step draws a number, as a network with dropout would.
        monkeypatch.setattr(
            Learner,
            "step",
            lambda *arguments, name=name: (drawn[name].append(torch.rand(()).item()), step(*arguments))[1],
        )
        arguments = training("0", name, environment, "training.schedule=constant")
        if name == "halves":
            assert train.main([*arguments, "--epochs", "1"]) == 0
            arguments.append("--continue")
        assert train.main([*arguments, "--epochs", "2"]) == 0
    assert drawn["whole"] == drawn["halves"]
    assert len(set(drawn["whole"])) == 4
    whole_weights, halves_weights = (load_file(model(environment, name) / final) for name in ("whole", "halves"))
    assert whole_weights.keys() == halves_weights.keys()
    for key, value in whole_weights.items():
        torch.testing.assert_close(halves_weights[key], value, rtol=0, atol=1e-6)
    capsys.readouterr()
    assert train.main(training("0", "whole", environment, "training.schedule=constant")) == 2
    check_refusal(capsys, "--continue")
    for name in ("whole", "halves"):
        shutil.rmtree(model(environment, name))


def test_training_checkpoints_the_finest_level_as_planned_and_validation_does_not(environment):
    calls = {True: Counter(), False: Counter()}

    def count(module, *_):
        if isinstance(module, FieldHead):
            calls[torch.is_grad_enabled()][module] += 1

    name, change = "checkpointed", "configurations.half.recompute=true"
    hook = register_module_forward_hook(count)
    try:
        assert train.main([*training("0", name, environment, change), "--epochs", "1", "--no_validation"]) == 0
    finally:
        hook.remove()
    shutil.rmtree(model(environment, name))
    # Stages 3 and 2 predict their fields once in each of two steps, and stage 1 again in the backward pass.
    assert sorted(calls[True].values()) == [2, 2, 4]
    assert len(calls[False]) == 3
    assert len(set(calls[False].values())) == 1


def test_going_on_trains_the_epochs_that_are_missing(environment):
    arguments = [*training("1", "tiny", environment), "--no_validation"]
    assert train.main([*arguments, "--epochs", "1"]) == 0
    assert train.main([*arguments, "--continue", "--epochs", "2"]) == 0
    log = (model(environment) / "fold_1" / "training_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in log] == [1, 2]


def test_predictions_are_what_simpleitk_makes_of_them(environment, tmp_path):
    source = environment / "raw" / NAME / "imagesTs"
    out = tmp_path / "out"
    assert predict.main(["-i", str(source), "-o", str(out), "-m", str(model(environment)), "-f", "0"]) == 0
    pairs = json.loads((out / "predict.json").read_text())["pairs"]
    assert len(pairs) == 2
    for pair in pairs:
        fixed, moving = sitk.ReadImage(pair["fixed_path"]), sitk.ReadImage(pair["moving_path"])
        field = sitk.ReadImage(str(out / pair["field"]), sitk.sitkVectorFloat64)
        assert field.GetSize() == fixed.GetSize()
        np.testing.assert_allclose(field.GetOrigin(), fixed.GetOrigin(), atol=1e-3)
        np.testing.assert_allclose(field.GetDirection(), fixed.GetDirection(), atol=1e-5)
        lookup = sitk.DisplacementFieldTransform(sitk.Image(field))
        expected = sitk.Resample(moving, fixed, lookup, sitk.sitkLinear, 0.0)
        warped = sitk.ReadImage(str(out / pair["warped"]))
        np.testing.assert_allclose(
            sitk.GetArrayFromImage(warped).astype(float), sitk.GetArrayFromImage(expected), atol=1.0
        )
        # Two epochs change little, so what the field does is nearly the pre-alignment.
        transform = sitk.ReadTransform(str(out / pair["prealignment"]))
        middle = fixed.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in fixed.GetSize()])
        moved = lookup.TransformPoint(middle)
        assert np.linalg.norm(np.subtract(moved, transform.TransformPoint(middle))) < 12
    assert evaluate.main(["-i", str(out), "-l", str(environment / "raw" / NAME / "labelsTs")]) == 0
    table = pd.read_csv(out / "metrics.csv")
    assert {"initial_dice", "prealigned_dice", "dice", "hd95_mm", "folding_percent", "sdlogj"} <= set(table.columns)


def test_overwriting_needs_a_word_and_pairs_may_come_from_a_table(environment, tmp_path, capsys):
    source = environment / "raw" / NAME / "imagesTs"
    images = sorted(source.glob("*.nii.gz"))
    table = tmp_path / "pairs.csv"
    table.write_text(f"fixed,moving,moving_modality\n{images[0]},{images[3]},PET\n")
    arguments = ["-i", str(table), "-o", str(tmp_path / "out"), "-m", str(model(environment)), "-f", "0"]
    assert predict.main(arguments) == 0
    assert "PET" in capsys.readouterr().err
    before = (tmp_path / "out" / "predict.json").read_text()
    assert predict.main(arguments) == 2
    check_refusal(capsys, "--overwrite")
    assert (tmp_path / "out" / "predict.json").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["77", "0"], "77"),
        (["999", "fold9"], "no fold"),
        (["999", "0", "-p", "mine"], "mine"),
        (["999", "0", "-c", "quarter"], "quarter"),
        (["999", "0", "--set", "loss.smoothness=1"], "--as"),
        (["999", "0", "--device", "abacus"], "abacus"),
    ],
)
def test_training_refuses(environment, capsys, arguments, said):
    assert train.main(arguments) == 2
    check_refusal(capsys, said)


def test_plans_that_are_called_otherwise_than_their_file_are_refused(environment, capsys):
    folder = environment / "preprocessed" / NAME
    shutil.copy(folder / "plans.json", folder / "plans_mine.json")
    try:
        assert train.main(["999", "0", "-p", "mine"]) == 2
        check_refusal(capsys, "plans_mine.json", "'mine'")
    finally:
        (folder / "plans_mine.json").unlink()


def test_a_dataset_without_labels_trains_by_image_similarity(environment, tmp_path, monkeypatch, capsys):
    shutil.copytree(environment / "raw", tmp_path / "raw")
    shutil.rmtree(tmp_path / "raw" / NAME / "labelsTr")
    description = tmp_path / "raw" / NAME / "dataset.json"
    content = json.loads(description.read_text())
    for cases in content["training"].values():
        for case in cases:
            del case["label"]
    description.write_text(json.dumps(content))
    monkeypatch.setenv("llmreg_home", str(tmp_path))
    assert plan_and_preprocess.main(["-d", "999", "-c", "half", "-np", "1"]) == 0
    plans = read_plans(tmp_path / "preprocessed" / NAME / "plans.json")
    assert (plans.loss.dice, plans.loss.similarity_kind, plans.prealignment.method) == (0, "mind", "search")
    assert train.main(training("0", "dice", environment, "loss.dice=1", "loss.similarity=0")) == 2
    check_refusal(capsys, "no pair of labelled cases", "labelsTr", "loss.similarity")
    assert not (tmp_path / "results").exists()
    assert train.main([*training("0", "tiny", environment), "--epochs", "2"]) == 0
    fold = tmp_path / "results" / NAME / "llm_morph__tiny__half" / "fold_0"
    rows = [json.loads(line) for line in (fold / "training_log.jsonl").read_text().splitlines()]
    assert all(row["validation_dice"] is None and 0 < row["validation_similarity"] < 1 for row in rows)
    assert all("loss_dice" not in row and row["loss_similarity"] > 0 for row in rows)
    best = json.loads((fold / "checkpoint_best.json").read_text())["best_score"]
    assert best == -min(row["validation_similarity"] for row in rows)
    source = tmp_path / "raw" / NAME / "imagesTs"
    assert predict.main(["-i", str(source), "-o", str(tmp_path / "out")]) == 0
    pairs = json.loads((tmp_path / "out" / "predict.json").read_text())["pairs"]
    assert all(pair["moving_transform"]["uncertainty_mm"] > 0 for pair in pairs)


def field_of(environment: Path, folder: Path, fixed: Path, moving: Path, more: dict[str, Path | str]) -> sitk.Image:
    """The field from one image to another, by a table of pairs in ``folder``."""
    folder.mkdir(exist_ok=True)
    row = {"fixed": fixed, "moving": moving} | more
    (folder / "pairs.csv").write_text(f"{','.join(row)}\n{','.join(map(str, row.values()))}\n")
    arguments = ["-i", str(folder), "-o", str(folder / "out"), "-m", str(model(environment)), "-f", "0", "--overwrite"]
    assert predict.main(arguments) == 0
    pair = json.loads((folder / "out" / "predict.json").read_text())["pairs"][0]
    return sitk.ReadImage(str(folder / "out" / pair["field"]), sitk.sitkVectorFloat64)


@pytest.mark.parametrize(("order", "flips"), [((2, 0, 1), (True, False, True)), ((1, 0, 2), (False, True, False))])
def test_the_order_and_sign_of_axes_change_nothing_in_space(environment, tmp_path, order, flips):
    images = sorted((environment / "raw" / NAME / "imagesTs").glob("*.nii.gz"))
    fixed, moving = images[0], images[3]
    turned = {}
    for role, path in (("fixed", fixed), ("moving", moving)):
        image = sitk.Flip(sitk.PermuteAxes(sitk.ReadImage(str(path)), order), flips)
        turned[role] = tmp_path / f"{role}.nii.gz"
        sitk.WriteImage(image, str(turned[role]))
    plain = field_of(environment, tmp_path / "plain", fixed, moving, {})
    other = field_of(environment, tmp_path / "turned", turned["fixed"], turned["moving"], {})
    assert other.GetDirection() != plain.GetDirection()
    back = sitk.Resample(other, plain, sitk.Transform(3, sitk.sitkIdentity), sitk.sitkNearestNeighbor)
    apart = np.linalg.norm(sitk.GetArrayFromImage(back) - sitk.GetArrayFromImage(plain), axis=-1)
    assert apart.max() < 0.1


def test_an_image_on_a_turned_grid_gets_nearly_the_same_field_in_space(environment, tmp_path):
    """The same content lies on a grid turned by 17 degrees; both start from a transform that no image decides."""
    images = sorted((environment / "raw" / NAME / "imagesTs").glob("*.nii.gz"))
    fixed, moving = sitk.ReadImage(str(images[0])), images[3]
    turn = sitk.Euler3DTransform()
    turn.SetRotation(0.1, -0.2, 0.3)
    direction = np.array(turn.GetMatrix()).reshape(3, 3) @ np.array(fixed.GetDirection()).reshape(3, 3)
    middle = np.array(fixed.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in fixed.GetSize()]))
    half = (np.array(fixed.GetSize()) - 1) / 2 * fixed.GetSpacing()
    grid = sitk.Image(fixed.GetSize(), sitk.sitkFloat32)
    grid.SetSpacing(fixed.GetSpacing())
    grid.SetDirection(direction.ravel().tolist())
    grid.SetOrigin((middle - direction @ half).tolist())
    turned = sitk.Resample(fixed, grid, sitk.Transform(), sitk.sitkBSpline, 0.0, sitk.sitkFloat32)
    sitk.WriteImage(turned, str(tmp_path / "turned.nii.gz"))
    start = sitk.AffineTransform(3)
    start.Rotate(0, 1, 0.2)
    start.SetTranslation((7.0, -4.0, 11.0))
    sitk.WriteTransform(start, str(tmp_path / "start.tfm"))
    transforms = {"initial_transform": tmp_path / "start.tfm"}
    plain = field_of(environment, tmp_path / "plain", images[0], moving, transforms)
    other = field_of(environment, tmp_path / "other", tmp_path / "turned.nii.gz", moving, transforms)
    assert not np.allclose(other.GetDirection(), plain.GetDirection(), atol=0.1)
    # Fields are compared where both grids lie; they are smooth, so linear interpolation is enough.
    back = sitk.GetArrayFromImage(sitk.Resample(other, plain, sitk.Transform(), sitk.sitkLinear, 1e6))
    inside = back[..., 0] < 1e5
    apart = np.linalg.norm(back - sitk.GetArrayFromImage(plain), axis=-1)[inside]
    assert inside.mean() > 0.5
    # The turned image is interpolated and has its corners cut, so rigid alignment places it half a millimetre beside.
    assert apart.max() < 1.0


def test_masks_and_a_first_transform_are_followed(environment, tmp_path):
    images = sorted((environment / "raw" / NAME / "imagesTs").glob("*.nii.gz"))
    fixed, moving = images[0], images[3]
    start = sitk.AffineTransform(3)
    start.SetTranslation((7.0, -4.0, 11.0))
    sitk.WriteTransform(start, str(tmp_path / "start.tfm"))
    field_of(environment, tmp_path / "given", fixed, moving, {"initial_transform": tmp_path / "start.tfm"})
    out = tmp_path / "given" / "out"
    pair = json.loads((out / "predict.json").read_text())["pairs"][0]
    assert pair["moving_transform"]["stage"] == "given"
    prealignment = sitk.ReadTransform(str(out / pair["prealignment"]))
    for point in ((0.0, 0.0, 0.0), (30.0, -20.0, 40.0)):
        np.testing.assert_allclose(prealignment.TransformPoint(point), start.TransformPoint(point), atol=1e-6)
    # The mask is a box in a corner: its middle, not the body's, comes to the middle of the frame.
    mask = sitk.Image(sitk.ReadImage(str(moving)).GetSize(), sitk.sitkUInt8)
    mask.CopyInformation(sitk.ReadImage(str(moving)))
    mask[2:12, 2:12, 2:12] = 1
    sitk.WriteImage(mask, str(tmp_path / "mask.nii.gz"))
    plain = field_of(environment, tmp_path / "plain", fixed, moving, {})
    masked = field_of(environment, tmp_path / "masked", fixed, moving, {"moving_mask": tmp_path / "mask.nii.gz"})
    assert np.abs(sitk.GetArrayFromImage(masked) - sitk.GetArrayFromImage(plain)).max() > 5


def test_what_the_moving_image_does_not_show_is_reported(environment, tmp_path):
    images = sorted((environment / "raw" / NAME / "imagesTs").glob("*.nii.gz"))
    cut = tmp_path / "cut.nii.gz"
    sitk.WriteImage(sitk.ReadImage(str(images[3]))[:, :, :-12], str(cut))
    field = field_of(environment, tmp_path / "pair", images[0], cut, {})
    out = tmp_path / "pair" / "out"
    seen_mask = sitk.ReadImage(str(out / json.loads((out / "predict.json").read_text())["pairs"][0]["seen"]))
    image, lookup = sitk.ReadImage(str(cut)), sitk.DisplacementFieldTransform(sitk.Image(field))
    inside = 0
    for index in np.random.default_rng(0).integers(0, field.GetSize(), (300, 3)).tolist():
        point = lookup.TransformPoint(field.TransformIndexToPhysicalPoint(index))
        moving_index = np.array(image.TransformPhysicalPointToContinuousIndex(point))
        margin = np.minimum(moving_index + 0.5, np.array(image.GetSize()) - 0.5 - moving_index).min()
        if abs(margin) > 0.01:
            inside += seen_mask[index]
            assert seen_mask[index] == (margin > 0)
    assert 0 < inside < 300


def test_the_other_direction_warns_unless_it_was_trained(environment, tmp_path, capsys):
    images = sorted((environment / "raw" / NAME / "imagesTs").glob("*.nii.gz"))
    mr, ct = (next(path for path in images if path.name.endswith(f"_000{m}.nii.gz")) for m in (0, 1))
    reverse = {"fixed_modality": "CT", "moving_modality": "MR"}
    field_of(environment, tmp_path / "one", ct, mr, reverse)
    assert "trained to warp CT onto MR" in capsys.readouterr().err
    arguments = [*training("0", "both", environment, "training.bidirectional=true"), "--epochs", "1"]
    assert train.main(arguments) == 0
    trained_model = model(environment, "both")
    scored = pd.read_csv(trained_model / "fold_0" / "validation" / "metrics.csv")
    assert {name[-1] for name in scored["fixed"]} == {"0", "1"}
    source = tmp_path / "one" / "pairs.csv"
    capsys.readouterr()
    assert predict.main(["-i", str(source), "-o", str(tmp_path / "two"), "-m", str(trained_model)]) == 0
    assert "trained to warp" not in capsys.readouterr().err
    shutil.rmtree(trained_model)


def test_other_plans_or_another_llm_are_refused(environment, tmp_path, capsys):
    copy = tmp_path / "results" / NAME / "llm_morph__tiny__half"
    shutil.copytree(model(environment), copy)
    content = json.loads((copy / "plans.json").read_text())
    content["loss"]["smoothness"] = 9.0
    (copy / "plans.json").write_text(json.dumps(content))
    source = str(environment / "raw" / NAME / "imagesTs")
    assert predict.main(["-i", source, "-o", str(tmp_path / "out"), "-m", str(copy)]) == 2
    check_refusal(capsys, "plans")
    content["loss"]["smoothness"] = 0.1
    content["network"]["llm"]["layers"] = [0, 1]
    (copy / "plans.json").write_text(json.dumps(content))
    assert predict.main(["-i", source, "-o", str(tmp_path / "out"), "-m", str(copy)]) == 2
    check_refusal(capsys, "language model", "sha256")
    assert not (tmp_path / "out").exists()


def test_predicting_needs_a_model_and_several_are_listed(environment, tmp_path, monkeypatch, capsys):
    source = str(environment / "raw" / NAME / "imagesTs")
    other = model(environment, "twin")
    shutil.copytree(model(environment), other)
    try:
        assert predict.main(["-i", source, "-o", str(tmp_path / "out")]) == 2
        check_refusal(capsys, "tiny", "twin")
    finally:
        shutil.rmtree(other)
    monkeypatch.setenv("llmreg_results", str(tmp_path))
    assert predict.main(["-i", source, "-o", str(tmp_path / "out")]) == 2
    check_refusal(capsys, "train")


def test_unmatched_images_are_named(environment, tmp_path, capsys):
    source = environment / "raw" / NAME / "imagesTs"
    images = sorted(source.glob("*_0000.nii.gz")) + sorted(source.glob("*_0001.nii.gz"))[:1]
    folder = tmp_path / "in"
    folder.mkdir()
    for image in images:
        shutil.copy(image, folder)
    arguments = ["-i", str(folder), "-o", str(tmp_path / "out"), "-m", str(model(environment))]
    assert predict.main(arguments) == 2
    check_refusal(capsys, "no moving image")
    (folder / images[-1].name).unlink()
    assert predict.main(arguments) == 2
    check_refusal(capsys, "no moving image")


def test_an_unset_folder_says_what_to_type(monkeypatch, capsys):
    for variable in ("llmreg_home", "llmreg_raw", "llmreg_preprocessed", "llmreg_results"):
        monkeypatch.delenv(variable, raising=False)
    assert plan_and_preprocess.main(["-d", "1"]) == 2
    check_refusal(capsys, "export llmreg_")


def test_an_output_that_cannot_be_written_is_refused(environment, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    source = str(environment / "raw" / NAME / "imagesTs")
    assert predict.main(["-i", source, "-o", str(tmp_path / "file" / "out"), "-m", str(model(environment))]) == 2
    check_refusal(capsys, "Cannot write")


@pytest.fixture
def raw(environment, tmp_path, monkeypatch) -> Path:
    """A copy of the raw dataset to damage."""
    shutil.copytree(environment / "raw", tmp_path / "raw")
    monkeypatch.setenv("llmreg_home", str(tmp_path))
    return tmp_path / "raw" / NAME


def test_two_folders_with_one_id_are_refused(raw, capsys):
    (raw.parent / "Dataset999_Twin").mkdir()
    assert plan_and_preprocess.main(["-d", "999"]) == 2
    check_refusal(capsys, "Dataset999_Twin")


def damage_image(image: sitk.Image, damage: str) -> sitk.Image:
    values = sitk.GetArrayFromImage(image)
    if damage == "zero":
        values = values * 0
    if damage == "nan":
        values = values.astype(np.float32)
        values[2, 2, 2] = np.nan
    if damage == "2d":
        return image[:, :, 4]
    changed = sitk.GetImageFromArray(values)
    changed.CopyInformation(image)
    return changed


@pytest.mark.parametrize(
    ("damage", "said"), [("zero", "empty"), ("nan", "NaN"), ("2d", "3-D"), ("truncated", "truncated")]
)
def test_an_unusable_image_is_refused(raw, capsys, damage, said):
    path = sorted((raw / "imagesTr").glob("*.nii.gz"))[1]
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        sitk.WriteImage(damage_image(sitk.ReadImage(str(path)), damage), str(path))
    assert plan_and_preprocess.main(["-d", "999", "-np", "1"]) == 2
    check_refusal(capsys, said, path.name)
    assert not (raw.parents[1] / "preprocessed").exists()


def test_a_label_map_that_does_not_fit_is_refused(raw, capsys):
    path = sorted((raw / "labelsTr").glob("*.nii.gz"))[1]
    label = sitk.ReadImage(str(path))
    sitk.WriteImage(label[1:, :, :], str(path))
    assert plan_and_preprocess.main(["-d", "999", "-np", "1"]) == 2
    check_refusal(capsys, path.name)
    values = sitk.GetArrayFromImage(label)
    values[values == 1] = 77
    changed = sitk.GetImageFromArray(values)
    changed.CopyInformation(label)
    sitk.WriteImage(changed, str(path))
    assert plan_and_preprocess.main(["-d", "999", "-np", "1"]) == 2
    check_refusal(capsys, "77")


def test_templates_place_cases_in_training_and_prediction(environment, tmp_path):
    folder = environment / "preprocessed" / NAME
    content = json.loads((folder / "plans.json").read_text())
    content["plans_name"], content["prealignment"]["method"] = "placed", "template"
    (folder / "plans_placed.json").write_text(json.dumps(content))
    assert preprocess.main(["-d", "999", "-p", "placed", "-np", "1"]) == 0
    volumes = folder / f"volumes_{read_plans(folder / 'plans_placed.json').volumes_digest()}"
    assert {path.name for path in (volumes / "templates").glob("*")} >= {"all", "fold_0", "learned_from.json"}
    transforms = {path.stem: json.loads(path.read_text())["transform"] for path in volumes.glob("Demo_*.json")}
    assert {transform["stage"] for transform in transforms.values()} == {"template"}
    # Another run writes nothing.
    before = {path.name: path.stat().st_mtime_ns for path in volumes.glob("*")}
    assert preprocess.main(["-d", "999", "-p", "placed"]) == 0
    assert {path.name: path.stat().st_mtime_ns for path in volumes.glob("*")} == before
    arguments = [*training("0", "placed_tiny", environment), "-p", "placed", "--epochs", "1"]
    assert train.main(arguments) == 0
    trained_model = model(environment, "placed_tiny")
    assert {path.name for path in (trained_model / "templates").glob("*")} == {"all", "fold_0"}
    source = environment / "raw" / NAME / "imagesTs"
    assert predict.main(["-i", str(source), "-o", str(tmp_path), "-m", str(trained_model)]) == 0
    pairs = json.loads((tmp_path / "predict.json").read_text())["pairs"]
    assert {pair[f"{role}_transform"]["stage"] for pair in pairs for role in ("fixed", "moving")} == {"template"}
    held_out = json.loads((folder / "splits.json").read_text())[0]["validation"][0]
    image = next((environment / "raw" / NAME / "imagesTr").glob(f"{held_out}*"))
    image_input = ImageInput(image, int(held_out[-4:]))
    prepared_pair = Predictor.from_folder(trained_model, device="cpu").prepare(image_input, image_input)
    placed = prepared_pair.fixed_case.transform
    np.testing.assert_allclose(placed.translation, transforms[held_out]["translation"], atol=1e-6)
    shutil.rmtree(trained_model)


def test_preprocessing_again_is_quick_and_changes_nothing(environment):
    folder = next((environment / "preprocessed" / NAME).glob("volumes_*"))
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert preprocess.main(["-d", "999"]) == 0
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.fixture
def preprocessed_folder(environment, raw, tmp_path) -> Path:
    """The preprocessed folder of the damaged dataset, as it was before the damage."""
    shutil.copytree(environment / "preprocessed", tmp_path / "preprocessed")
    return tmp_path / "preprocessed" / NAME


def test_what_changed_is_preprocessed_again(raw, preprocessed_folder):
    plans = read_plans(preprocessed_folder / "plans.json")
    folder = preprocessed_folder / f"volumes_{plans.volumes_digest()}"
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.b2nd")}
    changed = next(
        path for path in sorted((raw / "labelsTr").iterdir()) if plans.prealignment.reference_case not in path.name
    )
    label = sitk.ReadImage(str(changed))
    sitk.WriteImage(sitk.BinaryThreshold(label, 1, 99) * 2, str(changed))
    # Placed by templates, the other cases would change with the labels.
    assert plans.prealignment.method != "template"
    assert preprocess.main(["-d", "999"]) == 0
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.b2nd")}
    case = changed.name.removesuffix(".nii.gz")
    rewritten = {name for name in after if after[name] != before[name]}
    assert rewritten == {f"{case}{kind}.b2nd" for kind in ("", "_seen", "_seg")}


def test_plans_that_were_edited_are_not_overwritten(preprocessed_folder, capsys):
    path = preprocessed_folder / "plans.json"
    content = json.loads(path.read_text())
    content["loss"]["smoothness"] = 5.0
    path.write_text(json.dumps(content))
    # Nothing else changed, so the edited plans are kept.
    assert plan_and_preprocess.main(["-d", "999", "-c", "half"]) == 0
    assert read_plans(path).loss.smoothness == 5.0
    capsys.readouterr()
    assert plan_and_preprocess.main(["-d", "999", "-c", "half", "--memory_gb", "3"]) == 2
    check_refusal(capsys, "plans.json", "--overwrite", "memory")
    assert read_plans(path).loss.smoothness == 5.0
    assert (preprocessed_folder / "plan_report.html").exists()


def test_a_fold_without_validation_pairs_trains_and_predicts(environment, capsys):
    splits = environment / "preprocessed" / NAME / "splits.json"
    text = splits.read_text()
    content = json.loads(text)
    content[2]["validation_pairs"] = []
    splits.write_text(json.dumps(content))
    try:
        assert train.main([*training("2", "blind", environment), "--epochs", "1", "--no_validation"]) == 0
        assert train.main([*training("2", "blind", environment), "--epochs", "2", "--continue"]) == 0
    finally:
        splits.write_text(text)
        shutil.rmtree(model(environment, "blind"))
    assert "no validation pair" in capsys.readouterr().err


def test_a_language_model_is_fetched_planned_and_used_without_its_files(environment, tmp_path, monkeypatch, capsys):
    for part in ("raw", "preprocessed", "llm"):
        shutil.copytree(environment / part, tmp_path / part, copy_function=shutil.copy2)
    monkeypatch.setenv("llmreg_home", str(tmp_path))
    monkeypatch.setenv("llmreg_llm", str(tmp_path / "cache"))
    source = tmp_path / "llm"
    assert fetch_llm.main([str(source), "--layers", "deep"]) == 0
    [record] = (tmp_path / "cache").glob("*/layers.json")
    fetched = json.loads(record.read_text())
    assert (fetched["layers"], len(fetched["sha256"])) == ([1, 2], 64)
    assert plan.main(["-d", "999", "--llm", str(source), "--layers", "1", "2", "--overwrite"]) == 0
    plans = read_plans(tmp_path / "preprocessed" / NAME / "plans.json")
    assert (plans.network.llm.layers, plans.network.llm.sha256) == ((1, 2), fetched["sha256"])
    shutil.rmtree(source)
    few = ["--set", "network.width=4", "training.steps_per_epoch=1", "training.validation_pairs=1", "--as", "few"]
    assert train.main(["999", "0", *few, "--epochs", "1", "--workers", "0", "--device", "cpu"]) == 0
    shutil.rmtree(tmp_path / "cache")
    capsys.readouterr()
    images = str(tmp_path / "raw" / NAME / "imagesTs")
    assert predict.main(["-i", images, "-o", str(tmp_path / "out"), "-p", "few"]) == 2
    check_refusal(capsys, "not in the layer cache", "llmreg_fetch_llm")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere/model", "--layers", "1"], "nowhere/model"),
        (["LLM", "--layers", "1", "2", "3"], "names no layers"),
        (["LLM", "--layers", "1", "9"], "layers 0 to 2"),
    ],
)
def test_fetching_refuses(environment, monkeypatch, capsys, arguments, said):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert fetch_llm.main([str(environment / "llm") if word == "LLM" else word for word in arguments]) == 2
    check_refusal(capsys, said)


@pytest.mark.parametrize(
    "ablation", ["no-blocks", "vit", "one-block", "no-lora", "random-weights", "adapters-only", "no-cost-volume"]
)
def test_every_ablation_trains_and_predicts_with_one_flag(environment, ablation):
    assert train.main([*training("0", ablation, environment), "--ablation", ablation, "--epochs", "1"]) == 0
    trained = read_plans(model(environment, ablation) / "plans.json").network
    expected = {
        "no-blocks": trained.blocks == "none",
        "vit": trained.blocks == "vit",
        "one-block": len(trained.llm.layers) == 1,
        "no-lora": trained.llm.lora is None,
        "random-weights": trained.llm.weights == "random",
        "adapters-only": trained.blocks == "adapters",
        "no-cost-volume": trained.cost_volume == 0,
    }
    assert [name for name, is_so in expected.items() if is_so] == [ablation]
    assert (model(environment, ablation) / "fold_0" / "validation" / "summary.json").exists()


def test_an_unknown_ablation_is_refused(environment, capsys):
    assert train.main(["999", "0", "--ablation", "everything"]) == 2
    check_refusal(capsys, "no-lora", "layers-0-1")
    assert train.main(["999", "0", "--ablation", "vit", "--network", "voxelmorph"]) == 2
    check_refusal(capsys, "voxelmorph")


def test_a_baseline_trains_and_predicts_with_one_flag(environment, tmp_path, capsys):
    # In bfloat16, oneDNN's gradient of convolutions of two voxels a side is not always finite.
    changes = [
        "network.size=small",
        "training.steps_per_epoch=1",
        "training.validation_pairs=1",
        "training.autocast=none",
    ]
    few = ["--set", *changes, "--as", "few"]
    arguments = ["999", "0", "--network", "voxelmorph", *few, "--epochs", "1", "--workers", "0", "--device", "cpu"]
    assert train.main(arguments) == 0
    trained = environment / "results" / NAME / "voxelmorph__few__half"
    assert (trained / "fold_0" / "validation" / "summary.json").exists()
    assert read_plans(trained / "plans.json").network == network_settings("voxelmorph", size="small")
    out, folder = tmp_path / "out", tmp_path / "in"
    folder.mkdir()
    for image in sorted((environment / "raw" / NAME / "imagesTs").glob("*.nii.gz"))[:2]:
        (folder / image.name).symlink_to(image)
    assert predict.main(["-i", str(folder), "-o", str(out), "--network", "voxelmorph"]) == 0
    (pair,) = json.loads((out / "predict.json").read_text())["pairs"]
    assert (out / pair["field"]).exists()
    # The uncertainty is the spread over folds.
    other = str(tmp_path / "other")
    assert predict.main(["-i", str(folder), "-o", other, "--network", "voxelmorph", "--uncertainty"]) == 2
    check_refusal(capsys, "several folds")
    shutil.rmtree(trained)
