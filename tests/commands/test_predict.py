"""llmreg_predict: outputs, formats and messages. What it does with pairs is tested in ``tests/inference``."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import correlate1d, map_coordinates
from tiny_model_folder import make_plans, write_model, write_pair
from tiny_study import check_refusal, training
from tiny_study import model as trained_model

from llmreg import Grid, Predictor
from llmreg.commands import evaluate, predict, train
from llmreg.files import read_json
from llmreg.geometry.field import jacobian_determinant
from llmreg.geometry.grid import image_to_array
from llmreg.geometry.resampling import resample_image
from llmreg.images.fields import read_field
from llmreg.images.formats import FIELD_FORMATS
from llmreg.images.image_files import read_image, write_image
from llmreg.inference import registration
from llmreg.predictions import PredictedPair, read_predictions

FORMATS = ("itk", "learn2reg", "nifti-ras", "npz")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of two folds, the images of two pairs (``in``) and their label maps (``labels``)."""
    folder = tmp_path_factory.mktemp("study")
    write_model(folder, make_plans(), ("0", "1"), strength=2.0)
    for name in ("in", "labels"):
        (folder / name).mkdir()
    for subject in (1, 2):
        for path in write_pair(folder / "in", subject):
            image = sitk.ReadImage(str(path))
            labels = (sitk.GetArrayFromImage(image) > 0).astype(np.uint8)
            labels[..., : labels.shape[2] // 2] *= 2
            label = sitk.GetImageFromArray(labels)
            label.CopyInformation(image)
            write_image(label, folder / "labels" / path.name)
    return folder


@pytest.fixture
def command(study: Path, tmp_path: Path) -> list[str]:
    """The arguments that every prediction has; they write to ``tmp_path/out``."""
    model = study / "Dataset007_Tiny" / "voxelmorph__default__full"
    return ["-i", str(study / "in"), "-o", str(tmp_path / "out"), "-m", str(model), "--device", "cpu"]


def pairs_of(folder: Path) -> list[PredictedPair]:
    return read_predictions(folder).pairs


def test_the_command_names_what_the_library_has() -> None:
    assert tuple(registration.OUTPUTS) == predict.OUTPUTS
    assert registration.DEFAULT_OUTPUTS == predict.DEFAULT_OUTPUTS
    assert set(FIELD_FORMATS.names) >= set(FORMATS)


def test_all_outputs_of_all_pairs_and_a_table(study: Path, command: list[str], tmp_path: Path, capsys) -> None:
    labels = study / "labels"
    assert predict.main([*command, "--labels", str(labels), "--save", *predict.OUTPUTS]) == 0
    text = capsys.readouterr().err
    for pair in pairs_of(tmp_path / "out"):
        assert pair.pair_id in text
        fixed, moving = (read_image(Path(str(path))) for path in (pair.fixed_path, pair.moving_path))
        files = {output: pair.path(output) for output in predict.OUTPUTS}
        assert all(path is not None and path.exists() for path in files.values())
        moving_label = sitk.ReadImage(str(labels / f"{pair.moving}.nii.gz"))
        transform = sitk.ReadTransform(str(files["transform"]))
        expected = sitk.Resample(moving_label, fixed, transform, sitk.sitkNearestNeighbor)
        assert (image_to_array(read_image(files["labels"])) != image_to_array(expected)).mean() < 5e-3
        assert image_to_array(read_image(files["uncertainty"])).max() > 0.1
        assert read_field(files["inverse"]).grid.same_as(Grid.from_image(moving))
        assert pair.largest_mm >= pair.mean_mm > 0
        # Time and memory are measured on the default device.
        assert pair.seconds > 0
    assert read_predictions(tmp_path / "out").peak_memory_gb > 0.1


def test_each_format_scores_the_same(study: Path, command: list[str], tmp_path: Path) -> None:
    dice = []
    for name in FORMATS:
        command[3] = str(tmp_path / name)
        assert predict.main([*command, "-f", "0", "--format", name, "--save", "field"]) == 0
        assert evaluate.main(["-i", str(tmp_path / name), "-l", str(study / "labels"), "--num_processes", "1"]) == 0
        dice.append(read_json(tmp_path / name / "summary.json")["metrics"]["dice"]["mean"])
    np.testing.assert_allclose(dice, dice[0], atol=2e-3)
    assert len(list((tmp_path / "learn2reg" / "learn2reg").glob("disp_*"))) == 2


def test_learn2regs_evaluation_gives_our_numbers(study: Path, command: list[str], tmp_path: Path) -> None:
    """Its definition is implemented again: displacements are added to indices, labels looked up with order 0."""
    fixed, moving = (f"Tiny_0001_{modality:04d}.nii.gz" for modality in (0, 1))
    grid = Grid.from_image(read_image(study / "in" / fixed))
    for folder, interpolator in (("in", "linear"), ("labels", "nearest")):
        # The challenge's images lie on one grid, so the moving image is centred on the fixed one and resampled.
        (tmp_path / folder).mkdir()
        image = read_image(study / folder / moving)
        image.SetOrigin(np.add(image.GetOrigin(), grid.centre - Grid.from_image(image).centre).tolist())
        write_image(resample_image(image, grid, None, interpolator), tmp_path / folder / moving)
    row = f"{study / 'in' / fixed},in/{moving},{study / 'labels' / fixed},labels/{moving}"
    (tmp_path / "pairs.csv").write_text(f"fixed,moving,fixed_label,moving_label\n{row}\n")
    command[1] = str(tmp_path / "pairs.csv")
    assert predict.main([*command, "-f", "0", "--format", "learn2reg", "--save", "field"]) == 0
    assert evaluate.main(["-i", str(tmp_path / "out"), "--num_processes", "1"]) == 0
    ours = read_json(tmp_path / "out" / "summary.json")["metrics"]

    stored = sitk.ReadImage(str(pairs_of(tmp_path / "out")[0].path("field")))
    displacement = sitk.GetArrayFromImage(stored).transpose(0, 3, 2, 1)  # (3, X, Y, Z), as nibabel reads it
    index = np.indices(displacement.shape[1:]) + displacement
    fixed_labels, moving_labels = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T
        for path in (study / "labels" / fixed, tmp_path / "labels" / moving)
    )
    warped = map_coordinates(moving_labels, index, order=0)
    dice = [
        2 * ((warped == k) & (fixed_labels == k)).sum() / ((warped == k).sum() + (fixed_labels == k).sum())
        for k in (1, 2)
    ]
    assert ours["dice_l2r"]["mean"] == pytest.approx(np.mean(dice), abs=1e-6)
    assert ours["initial_dice"]["mean"] != pytest.approx(np.mean(dice), abs=1e-2)
    gradients = np.stack(
        [np.stack([correlate1d(d, [-0.5, 0, 0.5], axis) for axis in range(3)], -1) for d in displacement], -2
    )
    determinant = np.linalg.det(gradients + np.eye(3))[2:-2, 2:-2, 2:-2]
    deviation = np.log(np.clip(determinant + 3, 1e-9, 1e9)).std()
    assert ours["sdlogj_learn2reg"]["mean"] == pytest.approx(deviation, rel=1e-3)


def test_a_pair_that_fails_gives_code_2_and_is_tried_again(command: list[str], tmp_path: Path, capsys) -> None:
    (tmp_path / "in").mkdir()
    for subject in (1, 2):
        write_pair(tmp_path / "in", subject)
    broken = tmp_path / "in" / "Tiny_0002_0000.nii.gz"
    content = broken.read_bytes()
    broken.write_bytes(content[:1000])
    command[1] = str(tmp_path / "in")
    assert predict.main([*command, "-f", "0"]) == 2
    check_refusal(capsys, broken.name)
    assert len(pairs_of(tmp_path / "out")) == 1
    broken.write_bytes(content)
    assert predict.main([*command, "-f", "0", "--continue"]) == 0
    assert len(pairs_of(tmp_path / "out")) == 2


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["--save", "labels"], ["moving_label", "--labels"]),
        (["-f", "0", "--uncertainty"], ["several folds", "--folds"]),
        (["--num_parts", "2"], ["--part_id"]),
        (["--num_parts", "2", "--part_id", "2"], ["--part_id 2"]),
        (["-f", "7"], ["fold", "7"]),
        (["-d", "1"], ["leave out -d"]),
    ],
)
def test_refusals_name_the_options(
    command: list[str], arguments: list[str], facts: list[str], tmp_path: Path, capsys
) -> None:
    assert predict.main([*command, *arguments]) == 2
    check_refusal(capsys, *facts)
    assert not (tmp_path / "out").exists()


def test_predictions_that_exist_need_an_option(command: list[str], tmp_path: Path, capsys) -> None:
    command += ["-f", "0", "--save", "field"]
    assert predict.main(command) == 0
    assert predict.main(command) == 2
    check_refusal(capsys, str(tmp_path / "out"), "--overwrite", "--continue")
    assert predict.main([*command, "--continue", "--diffeomorphic"]) == 2
    check_refusal(capsys, str(tmp_path / "out"), "another model", "--overwrite")
    assert predict.main([*command, "--continue"]) == 0
    assert predict.main([*command, "--overwrite", "--refine", "8"]) == 0
    for pair in pairs_of(tmp_path / "out"):
        assert pair.refined is not None
        assert pair.refined["after"] < pair.refined["before"]


def test_a_full_disk_ends_the_prediction(command: list[str], tmp_path: Path, capsys) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        assert predict.main(command) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    check_refusal(capsys, "ran out of space")
    assert not list((tmp_path / "out").glob("disp_*"))
    assert predict.main([*command, "--continue"]) == 0


def test_a_velocity_model_trains_and_its_inverse_is_the_negated_velocity(environment: Path) -> None:
    changes = ("network.field=velocity", "training.learning_rate=0.003", "loss.smoothness=0.01")
    assert train.main([*training("0", "velocity", environment, *changes), "--epochs", "1"]) == 0
    fixed, moving = sorted((environment / "raw" / "Dataset999_Demo" / "imagesTs").glob("*.nii.gz"))[:2]
    result = Predictor.from_folder(trained_model(environment, "velocity"), device="cpu").predict(fixed, moving)
    assert result.inverse_guess is not None
    assert jacobian_determinant(result.deformation).min() > 0
    points = result.deformation.grid.points_inside(5) / 2
    mapped = result.warp_points(points)
    assert np.linalg.norm(mapped - points, axis=1).max() > 1
    assert np.linalg.norm(result.inverse().warp_points(mapped) - points, axis=1).max() < 0.3
