"""llmreg_predict's outputs, formats and failures, and the same from Python."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.ndimage import correlate1d, map_coordinates
from tiny_study import NAME, model, refused, training

from llmreg import Grid, ImageInput, Options, Predictor
from llmreg.commands import evaluate, predict, train
from llmreg.errors import TooFewFolds, UserError
from llmreg.geometry.arrays import array_to_image, image_to_array
from llmreg.geometry.field import jacobian_determinant
from llmreg.geometry.resampling import resample_image
from llmreg.images.field_formats import FIELD_FORMATS
from llmreg.images.fields import read_field
from llmreg.images.image_files import read_image, write_image
from llmreg.inference import predictor as predicting
from llmreg.inference import registration


@pytest.fixture(scope="module")
def wild(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two folds that move things by voxels, each in its own way: the trained one with other field heads."""
    folder = tmp_path_factory.mktemp("wild") / NAME / model(home).name
    shutil.copytree(model(home), folder, ignore=shutil.ignore_patterns("fold_1"))
    shutil.copytree(folder / "fold_0", folder / "fold_1")
    torch.manual_seed(0)
    for path in folder.glob("fold_*/checkpoint_final.safetensors"):
        tensors = load_file(path)
        for name, value in tensors.items():
            if ".heads." in name and name.endswith("weight"):
                tensors[name] = 0.03 * torch.randn_like(value)
        with safe_open(path, "pt") as stored:
            save_file(tensors, path, stored.metadata())
    return folder


def images(home: Path, folder: str = "imagesTs") -> list[Path]:
    return sorted((home / "raw" / NAME / folder).glob("*.nii.gz"))


def rows(out: Path) -> list[dict]:
    return json.loads((out / "predict.json").read_text())["pairs"]


def test_the_command_names_what_the_library_has() -> None:
    assert tuple(registration.OUTPUTS) == predict.OUTPUTS
    assert registration.DEFAULT_OUTPUTS == predict.DEFAULT_OUTPUTS
    assert set(FIELD_FORMATS.names) >= {"itk", "learn2reg", "nifti-ras", "npz"}


def test_all_outputs_of_all_pairs_and_a_table(environment: Path, wild: Path, tmp_path: Path, capsys) -> None:
    source, labels = (environment / "raw" / NAME / folder for folder in ("imagesTs", "labelsTs"))
    arguments = ["-i", str(source), "-o", str(tmp_path), "-m", str(wild), "--labels", str(labels)]
    assert predict.main([*arguments, "--save", *predict.OUTPUTS]) == 0
    said = capsys.readouterr().err
    for pair in rows(tmp_path):
        assert pair["pair_id"] in said
        fixed = read_image(Path(pair["fixed_path"]))
        for output in predict.OUTPUTS:
            assert (tmp_path / pair[output]).exists()
        moving_label = sitk.ReadImage(str(labels / f"{pair['moving']}.nii.gz"))
        transform = sitk.ReadTransform(str(tmp_path / pair["transform"]))
        expected = sitk.Resample(moving_label, fixed, transform, sitk.sitkNearestNeighbor)
        assert (image_to_array(read_image(tmp_path / pair["labels"])) != image_to_array(expected)).mean() < 1e-3
        # Two folds that were trained so fast differ.
        assert image_to_array(read_image(tmp_path / pair["uncertainty"])).max() > 0.1
        inverse = read_field(tmp_path / pair["inverse"])
        assert inverse.grid.same_as(Grid.from_image(sitk.ReadImage(pair["moving_path"])))
        assert pair["seconds"] > 0
        assert pair["largest_mm"] >= pair["mean_mm"] > 0
    assert "folded %" in said
    assert json.loads((tmp_path / "predict.json").read_text())["peak_memory_gb"] > 0.1


def test_each_format_scores_the_same(environment: Path, wild: Path, tmp_path: Path) -> None:
    source, labels = (environment / "raw" / NAME / folder for folder in ("imagesTs", "labelsTs"))
    found = []
    for name in FIELD_FORMATS.names:
        out = tmp_path / name
        arguments = ["-i", str(source), "-o", str(out), "-m", str(wild), "-f", "0", "--format", name]
        assert predict.main([*arguments, "--save", "field"]) == 0
        assert evaluate.main(["-i", str(out), "-l", str(labels), "--num_processes", "1"]) == 0
        found.append(json.loads((out / "summary.json").read_text())["metrics"]["dice"]["mean"])
    np.testing.assert_allclose(found, found[0], atol=1e-3)
    assert min(path.name for path in (tmp_path / "learn2reg" / "learn2reg").iterdir()).startswith("disp_")


def test_learn2regs_evaluation_gives_our_numbers(environment: Path, wild: Path, tmp_path: Path) -> None:
    """Re-implemented from its definition: voxels are added to the index, labels looked up with order 0."""
    fixed, moving = images(environment)[:2]
    grid = Grid.from_image(read_image(fixed))
    labels = environment / "raw" / NAME / "labelsTs"
    for path, interpolator, default in ((moving, "linear", -1000.0), (labels / moving.name, "nearest", 0.0)):
        # On one grid, as the challenge's images are.
        (tmp_path / path.parent.name).mkdir()
        write_image(
            resample_image(read_image(path), grid, None, interpolator, default), tmp_path / path.parent.name / path.name
        )
    table = tmp_path / "pairs.csv"
    row = f"{fixed},imagesTs/{moving.name},{labels / fixed.name},labelsTs/{moving.name}"
    table.write_text(f"fixed,moving,fixed_label,moving_label\n{row}\n")
    arguments = ["-i", str(table), "-o", str(tmp_path / "out"), "-m", str(wild), "-f", "0", "--format", "learn2reg"]
    assert predict.main([*arguments, "--save", "field"]) == 0
    assert evaluate.main(["-i", str(tmp_path / "out"), "--num_processes", "1"]) == 0
    ours = json.loads((tmp_path / "out" / "summary.json").read_text())["metrics"]

    stored = sitk.ReadImage(str(tmp_path / "out" / rows(tmp_path / "out")[0]["field"]))
    displacement = sitk.GetArrayFromImage(stored).transpose(0, 3, 2, 1)  # (3, X, Y, Z), as nibabel reads it
    index = np.indices(displacement.shape[1:]) + displacement
    there, here = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T
        for path in (tmp_path / "labelsTs" / moving.name, labels / fixed.name)
    )
    warped = map_coordinates(there, index, order=0)
    dice = [
        2 * ((warped == k) & (here == k)).sum() / ((warped == k).sum() + (here == k).sum())
        for k in np.unique(here)
        if k and (there == k).any()
    ]
    assert ours["dice"]["mean"] == pytest.approx(np.mean(dice), abs=1e-3)
    assert ours["initial_dice"]["mean"] != pytest.approx(np.mean(dice), abs=1e-2)
    gradients = np.stack(
        [np.stack([correlate1d(d, [-0.5, 0, 0.5], axis) for axis in range(3)], -1) for d in displacement], -2
    )
    determinant = np.linalg.det(gradients + np.eye(3))[2:-2, 2:-2, 2:-2]
    deviation = np.log(np.clip(determinant + 3, 1e-9, 1e9)).std()
    assert ours["sdlogj_learn2reg"]["mean"] == pytest.approx(deviation, rel=1e-3)


def test_a_pair_that_fails_does_not_stop_the_others(environment: Path, tmp_path: Path, capsys) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for path in images(environment):
        shutil.copy(path, source)
    broken = min(source.iterdir())
    whole = broken.read_bytes()
    broken.write_bytes(whole[:1000])
    out = tmp_path / "out"
    arguments = ["-i", str(source), "-o", str(out), "-m", str(model(environment)), "-f", "0"]
    assert predict.main(arguments) == 2
    refused(capsys, broken.name, "truncated")
    content = json.loads((out / "predict.json").read_text())
    assert len(content["pairs"]) == len(content["failed"]) == 1
    assert (out / content["pairs"][0]["field"]).exists()
    before = (out / content["pairs"][0]["field"]).stat().st_mtime_ns
    broken.write_bytes(whole)
    assert predict.main([*arguments, "--continue"]) == 0
    assert len(rows(out)) == 2
    assert (out / content["pairs"][0]["field"]).stat().st_mtime_ns == before


def test_label_maps_that_are_missing_are_named_before_the_work(environment: Path, tmp_path: Path, capsys) -> None:
    source = environment / "raw" / NAME / "imagesTs"
    arguments = ["-i", str(source), "-o", str(tmp_path / "out"), "-m", str(model(environment)), "-f", "0"]
    assert predict.main([*arguments, "--save", "labels"]) == 2
    refused(capsys, "--labels")
    assert predict.main([*arguments, "--labels", str(tmp_path)]) == 2
    refused(capsys, "does not exist")
    assert not (tmp_path / "out").exists()


def test_diffeomorphic_fields_do_not_fold_and_invert(environment: Path, wild: Path, tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    fixed, moving = images(environment)[:2]
    table.write_text(f"fixed,moving\n{fixed},{moving}\n")
    arguments = ["-i", str(table), "-m", str(wild), "-f", "0", "--save", "field", "inverse"]
    assert predict.main([*arguments, "-o", str(tmp_path / "free")]) == 0
    assert predict.main([*arguments, "-o", str(tmp_path / "smooth"), "--diffeomorphic"]) == 0
    for free, smooth in zip(rows(tmp_path / "free"), rows(tmp_path / "smooth"), strict=True):
        field = read_field(tmp_path / "smooth" / smooth["field"])
        assert jacobian_determinant(field).min() > 0
        other = read_field(tmp_path / "free" / free["field"])
        away = np.linalg.norm(field.vectors - other.vectors, axis=-1)
        assert away.mean() < 0.5 * min(field.grid.spacing)
        back = read_field(tmp_path / "smooth" / smooth["inverse"]).to_transform()
        forth = field.to_transform()
        # Well inside both images; where it shrinks to a fiftieth, interpolation between voxels has its error.
        points = field.grid.centre + 0.6 * (field.grid.points_inside(4) - field.grid.centre)
        came = [back.TransformPoint(forth.TransformPoint(point)) for point in points]
        assert np.linalg.norm(came - points, axis=1).mean() < 0.1 * max(field.grid.spacing)


def test_a_velocity_model_trains_and_its_inverse_is_the_negated_velocity(environment: Path, tmp_path: Path) -> None:
    changes = ("network.field=velocity", "training.learning_rate=0.003", "loss.smoothness=0.01")
    assert train.main([*training("0", "velocity", environment, *changes), "--epochs", "1"]) == 0
    own = model(environment, "velocity")
    fixed, moving = images(environment)[:2]
    found = Predictor.from_folder(own, device="cpu").predict(fixed, moving)
    shutil.rmtree(own)
    assert found.inverse_guess is not None
    assert jacobian_determinant(found.deformation).min() > 0
    points = found.deformation.grid.points_inside(5) / 2
    back = found.inverse().warp_points(found.warp_points(points))
    assert np.linalg.norm(found.warp_points(points) - points, axis=1).max() > 1
    assert np.linalg.norm(back - points, axis=1).max() < 0.3


def test_refining_lowers_the_objective(environment: Path, tmp_path: Path) -> None:
    source = environment / "raw" / NAME / "imagesTs"
    arguments = ["-i", str(source), "-o", str(tmp_path), "-m", str(model(environment)), "-f", "0"]
    assert predict.main([*arguments, "--refine", "5"]) == 0
    for pair in rows(tmp_path):
        assert pair["refined"]["after"] < pair["refined"]["before"]
    assert predict.main([*arguments, "--continue"]) == 2


def test_files_images_and_arrays_register_alike(environment: Path) -> None:
    fixed, moving = images(environment)[:2]
    predictor = Predictor.from_folder(str(model(environment)), folds=[0], device="cpu")
    expected = predictor.predict(str(fixed), moving).field
    loaded = [sitk.ReadImage(str(path)) for path in (fixed, moving)]
    arrays = [(sitk.GetArrayFromImage(image), Grid.from_image(image)) for image in loaded]
    for given in (loaded, arrays, [ImageInput(image) for image in loaded]):
        found = predictor.predict(*given)
        np.testing.assert_array_equal(found.field.vectors, expected.vectors)
    assert Grid.from_image(found.warped).same_as(Grid.from_image(loaded[0]))


def test_masks_may_be_files_images_and_arrays(environment: Path, tmp_path: Path) -> None:
    fixed, moving = images(environment)[:2]
    predictor = Predictor.from_folder(model(environment), folds=[0], device="cpu")
    without = predictor.predict(fixed, moving).field
    image = sitk.ReadImage(str(fixed))
    values = np.zeros(Grid.from_image(image).shape, np.uint8)
    values[4:12, 4:12, 4:12] = 1
    mask, path = array_to_image(values, Grid.from_image(image)), tmp_path / "mask.nii.gz"
    sitk.WriteImage(mask, str(path))
    given = [(image, mask), (fixed, path), (fixed, (values, Grid.from_image(image))), (image, str(path))]
    fields = [predictor.predict(ImageInput(one, mask=own), moving).field.vectors for one, own in given]
    assert not np.array_equal(fields[0], without.vectors)
    for other in fields[1:]:
        np.testing.assert_array_equal(other, fields[0])
    elsewhere = array_to_image(values[:-1], Grid.from_image(mask[:, :, :-1]))
    with pytest.raises(UserError, match="The fixed image's mask is not on the grid"):
        predictor.predict(ImageInput(fixed, mask=elsewhere), moving)


def test_what_a_killed_prediction_has_left_is_removed(environment: Path, tmp_path: Path) -> None:
    arguments = ["-i", str(environment / "raw" / NAME / "imagesTs"), "-o", str(tmp_path), "-m", str(model(environment))]
    assert predict.main([*arguments, "-f", "0", "--save", "field"]) == 0
    name = rows(tmp_path)[0]["field"]
    left, others = (tmp_path / f".partial-abcd_12x-{file}" for file in (name, "disp_another.nii.gz"))
    for path in (left, others):
        path.write_bytes(b"half a field")
    assert predict.main([*arguments, "-f", "0", "--save", "field", "--overwrite"]) == 0
    assert not left.exists()
    assert others.exists()


def test_the_uncertainty_of_one_fold_is_refused(environment: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(TooFewFolds) as refusal:
        Predictor.from_folder(model(environment), ["0"], "cpu", Options(uncertainty=True))
    assert refusal.value.fold == "0"
    source = environment / "raw" / NAME / "imagesTs"
    arguments = ["-i", str(source), "-o", str(tmp_path), "-m", str(model(environment)), "-f", "0", "--uncertainty"]
    assert predict.main(arguments) == 2
    refused(capsys, "several folds", "--folds")
    assert not list(tmp_path.iterdir())


def test_large_images_are_worked_on_one_at_a_time(environment: Path, tmp_path: Path, monkeypatch) -> None:
    """The same results, and around a large pair no other is read before the one before is written."""
    fixed, moving, other, another = images(environment)[:4]
    table = tmp_path / "pairs.csv"
    listed = [(fixed, moving), (other, another), (fixed, another), (other, moving)]
    table.write_text("fixed,moving\n" + "".join(f"{f},{m}\n" for f, m in listed))
    arguments = ["-i", str(table), "-m", str(model(environment)), "-f", "0", "--save", "field"]
    assert predict.main([*arguments, "-o", str(tmp_path / "many")]) == 0
    events: list[str] = []
    prepare, save = predicting.Predictor.prepare, registration.Registration.save
    # The third pair alone is large.
    monkeypatch.setattr("llmreg.inference.pipeline.is_large", lambda path: len(calls.append(path) or calls) in (5, 6))
    calls: list[Path] = []
    monkeypatch.setattr(predicting.Predictor, "prepare", lambda *given: (events.append("read"), prepare(*given))[1])
    monkeypatch.setattr(registration.Registration, "save", lambda *given: (save(*given), events.append("written"))[0])
    assert predict.main([*arguments, "-o", str(tmp_path / "one")]) == 0
    assert sorted(events[:4]) == ["read", "read", "written", "written"]
    assert events[4:] == ["read", "written"] * 2
    for one, many in zip(rows(tmp_path / "one"), rows(tmp_path / "many"), strict=True):
        fields = [read_field(tmp_path / k / r["field"]).vectors for k, r in (("one", one), ("many", many))]
        np.testing.assert_array_equal(*fields)


def test_what_is_there_is_kept_until_asked(environment: Path, wild: Path, tmp_path: Path, capsys) -> None:
    """Also when a run did not come to its end, and whatever it had written."""
    source = environment / "raw" / NAME / "imagesTs"
    arguments = ["-i", str(source), "-o", str(tmp_path), "-m", str(wild), "-f", "0"]
    assert predict.main([*arguments, "--save", "field", "transform"]) == 0
    before = (tmp_path / rows(tmp_path)[0]["field"]).read_bytes()
    (tmp_path / "predict.json").unlink()
    assert predict.main([*arguments, "--save", "field"]) == 2
    refused(capsys, "--overwrite")
    assert predict.main([*arguments, "--save", "field", "--diffeomorphic", "--continue"]) == 2
    refused(capsys, "another model")
    assert (tmp_path / next(tmp_path.glob("disp_*"))).read_bytes() == before
    assert list(tmp_path.glob("transform_*"))
    assert predict.main([*arguments, "--save", "field", "--overwrite"]) == 0
    assert not list(tmp_path.glob("transform_*"))


def test_a_rewritten_image_is_read_again(environment: Path, tmp_path: Path) -> None:
    fixed, moving, other = (images(environment)[k] for k in (0, 1, 3))
    predictor = Predictor.from_folder(model(environment), [0], "cpu")
    given = tmp_path / "moving.nii.gz"
    shutil.copy(moving, given)
    first = predictor.predict(fixed, given)
    first.moving.SetOrigin((1000.0, 0.0, 0.0))
    again = predictor.predict(fixed, given)
    assert Grid.from_image(again.moving).same_as(Grid.from_image(read_image(moving)))
    shutil.copy(other, given)
    assert not np.array_equal(predictor.predict(fixed, given).field.vectors, first.field.vectors)


def test_a_full_disk_ends_the_prediction(environment: Path, tmp_path: Path, capsys) -> None:
    source = environment / "raw" / NAME / "imagesTs"
    arguments = ["-i", str(source), "-o", str(tmp_path), "-m", str(model(environment)), "-f", "0"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        assert predict.main(arguments) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    refused(capsys, "ran out of space")
    assert not list(tmp_path.glob("disp_*"))
    assert predict.main([*arguments, "--continue"]) == 0


def test_pairs_that_learn2reg_would_call_alike_are_refused(environment: Path, tmp_path: Path, capsys) -> None:
    fixed, moving = images(environment)[:2]
    for name in (fixed.name, moving.name):
        (tmp_path / name.replace("Demo", "Other")).symlink_to(fixed.parent / name)
    table = tmp_path / "pairs.csv"
    others = [name.replace("Demo", "Other") for name in (fixed.name, moving.name)]
    table.write_text(f"fixed,moving\n{fixed},{moving}\n{others[0]},{others[1]}\n")
    arguments = ["-i", str(table), "-o", str(tmp_path / "out"), "-m", str(model(environment)), "-f", "0"]
    assert predict.main([*arguments, "--format", "learn2reg"]) == 2
    refused(capsys, "different folders")
    assert not (tmp_path / "out").exists()
