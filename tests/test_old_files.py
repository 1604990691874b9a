"""Files that earlier versions wrote are read, or refused with a sentence.

They lie in ``tests/data``, whose README says what each of them is.

Commands, files and, in :func:`predict_unmerged`, the public :class:`llmreg.Predictor` are all that these tests know of
the package, so that they hold whatever becomes of its modules.

Fields are compared with those that the earlier version predicted. With ``LLMREG_SAME_MACHINE=1`` in the environment,
on the machine that wrote them, they must be the same bytes; see :data:`SAME_MACHINE`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch

import llmreg

DATA = Path(__file__).parent / "data" / "v0_1"
# Where version 0.1.0 had the files when it wrote absolute paths into some of them.
WRITTEN_IN = "/tmp/llmreg_v0_1"
NAME = "Dataset901_Stored"
FIXED, MOVING = "Stored_0004_0000", "Stored_0004_0001"
PAIR = f"{FIXED}_{MOVING}"
FIELD = f"disp_{PAIR}.nii.gz"
# The shortest edge of a voxel of the plans' frame: what is so far off in mm is at most one voxel off.
VOXEL_MM = 3.0
# Voxels by which a field may be off: of the same computation, and of one with LoRA merged where it was not or was.
SAME, MERGED = 1e-4, 0.01
# Voxels by which a field may be off where its network computes in bfloat16, or in float32 in its place, depending on
# the hardware; and where it is the end of an optimisation, whose steps grow with small differences.
OTHER_HARDWARE, OPTIMISED = 0.3, 0.05
# Whether unmerged fields must be the same bytes. That takes one thread, as they were written with.
SAME_MACHINE = os.environ.get("LLMREG_SAME_MACHINE") == "1"

MODELS = {
    "small": "llm_morph__small__full",
    "bfloat16": "llm_morph__bfloat16__full",
    "velocity": "llm_morph__velocity__wide",
    "direct": "llm_morph__direct__full",
    "gguf": "llm_morph__gguf__full",
    "lora_of_all": "llm_morph__lora_of_all__full",
    "no_lora": "llm_morph__no_lora__full",
    "random_weights": "llm_morph__random_weights__full",
    "vit": "llm_morph__vit__full",
    "adapters": "llm_morph__adapters__full",
    "none": "llm_morph__none__half",
    "templates": "llm_morph__templates__half",
    "voxelmorph": "voxelmorph__voxelmorph__full",
    "dual_pyramid": "dual_pyramid__dual_pyramid__full",
    "transmorph": "transmorph__transmorph__full",
    "mambamorph": "mambamorph__mambamorph__full",
}


# Fixtures and helpers


@pytest.fixture(scope="session")
def stored_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the files as they were written, unpacked once; no test changes them.

    Absolute paths in records of predictions lead to where the files are now. Those of the language model in plans and
    in the layer cache stay as they are: hashes of plans cover them, and the layers come from the cache.
    """
    root = tmp_path_factory.mktemp("v0_1")
    for archive in sorted(DATA.glob("*.tar.xz")):
        with tarfile.open(archive) as content:
            content.extractall(root, filter="data")
    move_paths(root / "predictions", WRITTEN_IN, str(root))
    move_paths(root / "home" / "results" / NAME / "benchmark", WRITTEN_IN, str(root))
    return root


def move_paths(folder: Path, before: str, now: str) -> None:
    """Replace the beginning of absolute paths below a folder, and the digest of a changed file in the scores of it."""
    for path in (*folder.rglob("predict.json"), *folder.rglob(".pairs/*.json"), *folder.rglob("pairs.csv")):
        original = path.read_bytes()
        path.write_bytes(original.replace(before.encode(), now.encode()))
        scores = path.with_name("summary.json")
        if path.name == "predict.json" and scores.exists():
            digests = (hashlib.sha256(content).hexdigest() for content in (original, path.read_bytes()))
            scores.write_text(scores.read_text().replace(*digests))


@pytest.fixture(autouse=True)
def environment(stored_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stored folders are those of the environment, until a test copies some of them."""
    for name in ("llmreg_raw", "llmreg_preprocessed", "llmreg_results", "llmreg_llm"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("llmreg_home", str(stored_root / "home"))
    threads = torch.get_num_threads()
    if SAME_MACHINE:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def copied_home(stored_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The three folders and the layer cache for tests that write into them, with the models that these train."""
    home = tmp_path / "home"
    for name in ("raw", "preprocessed", "llm"):
        shutil.copytree(stored_root / "home" / name, home / name)
    for name in ("llm_morph__small__full", "llm_morph__calibrate__full", "dual_pyramid__interrupted__full"):
        shutil.copytree(stored_root / "home" / "results" / NAME / name, home / "results" / NAME / name)
    monkeypatch.setenv("llmreg_home", str(home))
    return home


def run(command: str, *arguments: object) -> int:
    """The exit code of a command."""
    code: int = import_module(f"llmreg.commands.{command}").main([str(argument) for argument in arguments])
    return code


def predict(root: Path, of_model: str, output: Path, *more: object, folds: Sequence[int] = (0,)) -> None:
    """Predict the pair whose field is stored of each model."""
    folder = root / "home" / "results" / NAME / MODELS[of_model]
    more = more if "--save" in more else ("--save", "field", *more)
    pairs = root / "home" / "raw" / NAME / "imagesTs" / "one_pair.csv"
    assert run("predict", "-i", pairs, "-o", output, "-m", folder, "-f", *folds, "--device", "cpu", *more) == 0


def predict_unmerged(root: Path, of_model: str, output: Path, **options: int) -> None:
    """As :func:`predict`, with the weights of LoRA and the frozen ones kept apart, which no command does."""
    folder = root / "home" / "results" / NAME / MODELS[of_model]
    images = root / "home" / "raw" / NAME / "imagesTs"
    predictor = llmreg.Predictor.from_folder(folder, [0], "cpu", llmreg.Options(**options), merge_lora=False)
    registration = predictor.predict(images / f"{FIXED}.nii.gz", images / f"{MOVING}.nii.gz")
    registration.save(output, PAIR, ("field",))


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def check_field(actual: Path, expected: Path, tolerance: float, same_bytes: bool = False) -> None:
    """Two fields (mm, ITK) lie on one grid, move something, and differ by at most ``tolerance`` voxels."""
    images = [sitk.ReadImage(str(path)) for path in (actual, expected)]
    assert images[0].IsSameImageGeometryAs(images[1])
    actual_vectors, expected_vectors = (sitk.GetArrayFromImage(image) for image in images)
    assert np.linalg.norm(expected_vectors, axis=-1).max() > VOXEL_MM / 2
    if SAME_MACHINE and same_bytes:
        assert actual_vectors.tobytes() == expected_vectors.tobytes()
    assert np.linalg.norm(actual_vectors - expected_vectors, axis=-1).max() / VOXEL_MM <= tolerance


def check_table(actual: Path, expected: Path, tolerance: float = 1e-3) -> None:
    """Two tables have the same columns and rows, and the same numbers but for those of time and memory."""
    actual_table, expected_table = (pd.read_csv(path) for path in (actual, expected))
    measured_columns = [name for name in expected_table if "seconds" in name or "memory" in name]
    pd.testing.assert_frame_equal(
        actual_table.drop(columns=measured_columns, errors="ignore"),
        expected_table.drop(columns=measured_columns),
        rtol=0,
        atol=tolerance,
    )


def times(*folders: Path) -> dict[Path, int]:
    """When each file below the folders was written."""
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*") if path.is_file()}


def read_error(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one sentence of a refusal."""
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    return lines[0]


# Models that were trained earlier


@pytest.mark.parametrize("name", MODELS)
def test_unmerged_fields_are_the_same(stored_root: Path, tmp_path: Path, name: str) -> None:
    predict_unmerged(stored_root, name, tmp_path)
    tolerance = OTHER_HARDWARE if name == "bfloat16" else SAME
    check_field(tmp_path / FIELD, stored_root / "predictions" / "unmerged" / name / FIELD, tolerance, same_bytes=True)


@pytest.mark.parametrize("name", ["small", "lora_of_all", "velocity"])
def test_merged_fields_are_nearly_the_same(stored_root: Path, tmp_path: Path, name: str) -> None:
    predict(stored_root, name, tmp_path)
    check_field(tmp_path / FIELD, stored_root / "predictions" / "merged" / name / FIELD, MERGED)


def test_a_model_that_merging_would_change_is_predicted_as_it_was(stored_root: Path, tmp_path: Path) -> None:
    # In bfloat16 merged weights are rounded, which moves this field by more than MERGED: version 0.1.0 did not merge.
    predict(stored_root, "bfloat16", tmp_path)
    tolerance = MERGED if SAME_MACHINE else OTHER_HARDWARE
    check_field(tmp_path / FIELD, stored_root / "predictions" / "unmerged" / "bfloat16" / FIELD, tolerance)


def test_refined_and_diffeomorphic_fields_are_the_same(stored_root: Path, tmp_path: Path) -> None:
    predict_unmerged(stored_root, "small", tmp_path / "refined", refine=5)
    predict_unmerged(stored_root, "small", tmp_path / "diffeomorphic", diffeomorphic=True)
    for name in ("refined", "diffeomorphic"):
        check_field(tmp_path / name / FIELD, stored_root / "predictions" / name / FIELD, OPTIMISED, same_bytes=True)


def test_an_ensemble_and_all_its_outputs_are_the_same(stored_root: Path, tmp_path: Path) -> None:
    outputs = ("field", "inverse", "warped", "labels", "seen", "jacobian", "uncertainty", "prealignment")
    predict(stored_root, "small", tmp_path, "--save", *outputs, "--uncertainty", folds=(0, 1))
    stored_folder = stored_root / "predictions" / "ensemble"
    check_field(tmp_path / FIELD, stored_folder / FIELD, SAME, same_bytes=True)
    check_field(tmp_path / f"inverse_{PAIR}.nii.gz", stored_folder / f"inverse_{PAIR}.nii.gz", 10 * SAME)
    for output, tolerance in (("warped", 1), ("seen", 0), ("labels", 0), ("jacobian", 1e-3), ("uncertainty", 1e-3)):
        actual, expected = (
            voxels(folder / f"{output}_{PAIR}.nii.gz").astype(float) for folder in (tmp_path, stored_folder)
        )
        # A voxel at an edge may fall to the other side.
        assert (np.abs(actual - expected) > tolerance).sum() <= 2, output
        assert expected.any(), output
    transforms = [sitk.ReadTransform(str(folder / f"prealign_{PAIR}.tfm")) for folder in (tmp_path, stored_folder)]
    for point in ((0.0, 0.0, 0.0), (20.0, -10.0, 15.0)):
        actual_point, expected_point = (transform.TransformPoint(point) for transform in transforms)
        np.testing.assert_allclose(actual_point, expected_point, atol=1e-3)


@pytest.mark.parametrize("name", ["learn2reg", "nifti-ras", "npz"])
def test_fields_of_all_formats_are_read_and_written_as_they_were(stored_root: Path, tmp_path: Path, name: str) -> None:
    stored_field = next((stored_root / "predictions" / "formats" / name).rglob("disp_*"))
    images = stored_root / "home" / "raw" / NAME / "imagesTs"
    files = ("--fixed", images / f"{FIXED}.nii.gz", "--moving", images / f"{MOVING}.nii.gz")
    options = ["-i", stored_field, "-o", tmp_path / "itk.nii.gz", "--from", name, "--to", "itk"]
    assert run("convert_field", *options, *(files if name == "learn2reg" else ())) == 0
    check_field(tmp_path / "itk.nii.gz", stored_root / "predictions" / "unmerged" / "dual_pyramid" / FIELD, SAME)
    predict(stored_root, "dual_pyramid", tmp_path / "new", "--format", name)
    written_field = tmp_path / "new" / stored_field.relative_to(stored_root / "predictions" / "formats" / name)
    if name == "npz":
        with np.load(written_field) as actual, np.load(stored_field) as expected:
            assert set(actual) == set(expected)
            for key in expected:
                np.testing.assert_allclose(actual[key], expected[key], atol=SAME * VOXEL_MM)
    else:
        actual, expected = (sitk.ReadImage(str(path)) for path in (written_field, stored_field))
        assert actual.GetSize() == expected.GetSize()
        np.testing.assert_allclose(voxels(written_field), voxels(stored_field), atol=SAME * VOXEL_MM)


# Zips


@pytest.mark.parametrize(("name", "prediction"), [("small", "ensemble"), ("templates", "unmerged/templates")])
def test_a_zip_is_installed_and_predicts(stored_root: Path, tmp_path: Path, name: str, prediction: str) -> None:
    assert run("install_model", stored_root / "zips" / f"{name}.zip", "-o", tmp_path / "models") == 0
    folder = tmp_path / "models" / NAME / MODELS[name]
    pairs = stored_root / "home" / "raw" / NAME / "imagesTs" / "one_pair.csv"
    output = tmp_path / "out"
    assert run("predict", "-i", pairs, "-o", output, "-m", folder, "--save", "field", "--device", "cpu") == 0
    check_field(output / FIELD, stored_root / "predictions" / prediction / FIELD, SAME, same_bytes=True)


@pytest.mark.parametrize("way", ["predict", "train", "zip"])
def test_calibrated_tokens_are_refused_with_a_sentence(
    stored_root: Path, copied_home: Path, tmp_path: Path, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied_home / "results" / NAME / "llm_morph__calibrate__full"
    if way == "zip":
        # The zip may be refused when it is installed, or the model when it predicts.
        code = run("install_model", stored_root / "zips" / "calibrate.zip", "-o", tmp_path / "models")
        folder = tmp_path / "models" / NAME / folder.name
    if way == "train":
        code = run("train", 901, 0, "-p", "calibrate", "-c", "full", "--continue", "--device", "cpu", "--workers", 0)
    elif way == "predict" or code == 0:
        pairs = copied_home / "raw" / NAME / "imagesTs" / "one_pair.csv"
        code = run("predict", "-i", pairs, "-o", tmp_path / "out", "-m", folder, "--device", "cpu")
    assert code == 2
    assert "calibrate" in read_error(capsys)
    assert not (tmp_path / "out").exists()


# Folders of predictions


def test_predictions_that_are_whole_are_kept(stored_root: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(stored_root / "predictions" / "whole", output)
    before = times(output)
    continue_predictions(stored_root, output)
    after = times(output)
    changed = {path.relative_to(output).as_posix() for path in before | after if before.get(path) != after.get(path)}
    assert changed <= {"predict.json"}
    check_rows(output, stored_root)


def test_predictions_that_were_interrupted_are_gone_on_with(stored_root: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(stored_root / "predictions" / "interrupted", output)
    assert not (output / "predict.json").exists()
    before = times(output)
    assert before
    continue_predictions(stored_root, output)
    assert before.items() <= times(output).items()
    check_rows(output, stored_root)
    other_field = f"disp_{FIXED}_Stored_0001_0001.nii.gz"
    check_field(output / other_field, stored_root / "predictions" / "whole" / other_field, SAME, same_bytes=True)


def continue_predictions(stored_root: Path, output: Path) -> None:
    pairs = stored_root / "home" / "raw" / NAME / "imagesTs" / "pairs.csv"
    model = stored_root / "home" / "results" / NAME / MODELS["dual_pyramid"]
    save = ("--save", "field", "prealignment", "warped")
    assert run("predict", "-i", pairs, "-o", output, "-m", model, *save, "--device", "cpu", "--continue") == 0


def check_rows(output: Path, stored_root: Path) -> None:
    """``predict.json`` says what it said of the whole predictions; what is new in it may stand beside that."""
    actual, expected = (
        json.loads((folder / "predict.json").read_text()) for folder in (output, stored_root / "predictions/whole")
    )
    for key in ("model", "folds", "epochs", "checkpoints", "format"):
        assert actual[key] == expected[key]
    assert [actual_row["pair_id"] for actual_row in actual["pairs"]] == ["same", "other"]
    for actual_row, expected_row in zip(actual["pairs"], expected["pairs"], strict=True):
        for key in ("fixed", "moving", "field", "warped", "prealignment", "fixed_path", "moving_label"):
            assert actual_row[key] == expected_row[key]


@pytest.mark.parametrize("folder", ["predictions/whole", f"home/results/{NAME}/benchmark/ants/fold_0"])
def test_predictions_are_scored_as_they_were(stored_root: Path, tmp_path: Path, folder: str) -> None:
    labels = () if folder.startswith("predictions") else ("-l", stored_root / "home" / "raw" / NAME)
    options = ("--convention", "voxel", "--num_processes", 1)
    assert run("evaluate", "-i", stored_root / folder, "-o", tmp_path, *labels, *options) == 0
    check_table(tmp_path / "metrics.csv", stored_root / folder / "metrics.csv")
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert table["dice"].between(0.05, 0.95).any()
    assert table["tre_mm"].gt(1).any()
    actual, expected = (
        json.loads((place / "summary.json").read_text())["metrics"] for place in (tmp_path, stored_root / folder)
    )
    assert expected.keys() <= actual.keys()
    assert actual["dice"]["mean"] == pytest.approx(expected["dice"]["mean"], abs=1e-3)


@pytest.mark.parametrize(
    ("folder", "phrases"),
    [
        ("predictions/whole", ["same", "other"]),
        (f"home/results/{NAME}/llm_morph__velocity__wide", ["Stored_0001_0000_Stored_0002_0001"]),
        (f"home/results/{NAME}/benchmark", ["ANTs SyN", "LLM-Morph", "greedy is not installed"]),
    ],
)
def test_reports_show_what_was_written(stored_root: Path, tmp_path: Path, folder: str, phrases: list[str]) -> None:
    page = tmp_path / "page.html"
    assert run("report", stored_root / folder, "-o", page, "--num_processes", 1, "--pairs", 1) == 0
    text = page.read_text()
    assert all(part in text for part in phrases)


# Preprocessed datasets


def test_the_fingerprint_is_kept_and_planned_from(copied_home: Path, stored_root: Path) -> None:
    folder, stored_folder = copied_home / "preprocessed" / NAME, stored_root / "home" / "preprocessed" / NAME
    assert run("extract_fingerprint", "-d", 901, "-np", 1) == 0
    actual, expected = (
        json.loads((place / "dataset_fingerprint.json").read_text()) for place in (folder, stored_folder)
    )
    assert actual == expected
    (folder / "plans.json").unlink()
    (folder / "plans_paper.json").unlink()
    llm = ("--llm", stored_root / "language_models" / "tiny_llama", "--layers", 0, 1)
    assert run("plan", "-d", 901, "-np", 1, "-c", "full", "--spacing", 3, 3, 5, "--memory-gb", 4, *llm) == 0
    for file in ("plans.json", "plans_paper.json"):
        actual, expected = (json.loads((place / file).read_text()) for place in (folder, stored_folder))
        for key in ("dataset_name", "spacing", "size", "labels", "normalization", "loss", "default_configuration"):
            assert is_part_of(expected[key], actual[key]), key
        assert actual["prealignment"]["reference_case"] == expected["prealignment"]["reference_case"]
        assert actual["configurations"]["full"]["network_shape"] == expected["configurations"]["full"]["network_shape"]
        assert actual["network"]["llm"]["sha256"] == expected["network"]["llm"]["sha256"]


def is_part_of(expected: object, actual: object) -> bool:
    """Whether JSON says all that it said; objects may have got further keys."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        return all(key in actual and is_part_of(value, actual[key]) for key, value in expected.items())
    return expected == actual


@pytest.mark.parametrize("plans", ["default", "templates"])
def test_volumes_are_kept(copied_home: Path, plans: str) -> None:
    folders = [*(copied_home / "preprocessed" / NAME).glob("volumes_*")]
    before = times(*folders)
    assert len(before) > 40
    assert run("preprocess", "-d", 901, "-p", plans, "-np", 1) == 0
    assert times(*(copied_home / "preprocessed" / NAME).glob("volumes_*")) == before


def test_plans_without_volumes_are_preprocessed(copied_home: Path) -> None:
    assert run("preprocess", "-d", 901, "-p", "paper", "-np", 1) == 0
    assert len([*(copied_home / "preprocessed" / NAME).glob("volumes_*")]) == 3


@pytest.mark.parametrize(("source", "layers"), [("tiny_llama", (0, 1)), ("tiny.gguf", (0,))])
def test_layers_in_the_cache_are_those_of_the_language_model(
    copied_home: Path, stored_root: Path, source: str, layers: tuple[int, ...]
) -> None:
    before = {path.name for path in (copied_home / "llm").iterdir()}
    assert len(before) == 4
    assert run("fetch_llm", stored_root / "language_models" / source, "--layers", *layers) == 0
    assert {path.name for path in (copied_home / "llm").iterdir()} == before


# Trainings


def test_a_training_is_gone_on_with(copied_home: Path, stored_root: Path, tmp_path: Path) -> None:
    fold = copied_home / "results" / NAME / MODELS["small"] / "fold_0"
    before = (fold / "training_log.jsonl").read_text().splitlines()
    arguments = ("-p", "small", "-c", "full", "--workers", 0, "--device", "cpu", "--no_validation")
    assert run("train", 901, "fold0", *arguments, "--continue", "--epochs", 3) == 0
    after = (fold / "training_log.jsonl").read_text().splitlines()
    assert len(before) == 2
    assert after[:2] == before
    assert [json.loads(row)["epoch"] for row in after] == [1, 2, 3]
    assert json.loads((fold / "checkpoint_final.json").read_text())["epoch"] == 3
    assert len(json.loads((fold / "debug.json").read_text())["runs"]) == 3
    # The stored moments of the optimiser are so large that further steps hardly change the weights; without them, or
    # with those of other weights, the field changes by voxels.
    predict_unmerged(copied_home.parent, "small", tmp_path / "out")
    check_field(tmp_path / "out" / FIELD, stored_root / "predictions" / "unmerged" / "small" / FIELD, 0.02)


def test_a_training_that_was_interrupted_in_an_epoch_is_gone_on_with(copied_home: Path) -> None:
    fold = copied_home / "results" / NAME / "dual_pyramid__interrupted__full" / "fold_0"
    state = json.loads((fold / "checkpoint_latest.json").read_text())
    assert (state["epoch"], state["step"], len(state["sums"]) > 0) == (1, 1, True)
    arguments = ("-p", "interrupted", "-c", "full", "--workers", 0, "--device", "cpu", "--no_validation")
    assert run("train", 901, 0, *arguments, "--continue") == 0
    rows = [json.loads(row) for row in (fold / "training_log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    # The mean is of the step before the interruption, too, whose loss is stored as 1000.
    assert rows[1]["loss"] > 400
    assert (fold / "checkpoint_final.safetensors").exists()


def test_a_training_starts_from_a_stored_model(copied_home: Path, stored_root: Path, tmp_path: Path) -> None:
    model = stored_root / "home" / "results" / NAME / MODELS["small"] / "fold_0"
    changes = ("training.learning_rate=1e-9", "training.steps_per_epoch=1")
    arguments = ("-p", "small", "-c", "full", "--workers", 0, "--device", "cpu", "--no_validation", "--epochs", 1)
    assert run("train", 901, 0, *arguments, "--set", *changes, "--as", "tuned", "--pretrained", model) == 0
    (copied_home / "results" / NAME / MODELS["small"]).rename(tmp_path / "away")
    (copied_home / "results" / NAME / "llm_morph__tuned__full").rename(copied_home / "results" / NAME / MODELS["small"])
    predict_unmerged(copied_home.parent, "small", tmp_path / "out")
    check_field(tmp_path / "out" / FIELD, stored_root / "predictions" / "unmerged" / "small" / FIELD, 0.02)


def test_the_best_configuration_is_the_same(copied_home: Path, stored_root: Path) -> None:
    shutil.copytree(
        stored_root / "home" / "results" / NAME, copied_home / "results" / NAME, dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("*.safetensors"),
    )  # fmt: skip
    expected = (stored_root / "home" / "results" / NAME / "best_configuration.json").read_text()
    file = copied_home / "results" / NAME / "best_configuration.json"
    file.unlink()
    assert run("find_best_configuration", NAME) == 0
    # Means differ in their last digit between versions of pandas.
    actual, expected = (
        json.loads(text, parse_float=lambda number: round(float(number), 12)) for text in (file.read_text(), expected)
    )
    assert actual == expected


# Comparisons


def test_a_comparison_is_gone_on_with(copied_home: Path, stored_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored_benchmark = stored_root / "home" / "results" / NAME / "benchmark"
    output = copied_home / "results" / NAME / "benchmark"
    shutil.copytree(stored_benchmark, output)
    move_comparison(copied_home, output, stored_root)
    before = {path: time for path, time in times(output).items() if path.name.startswith("disp_")}
    arguments = ("-d", 901, "-p", "small", "-c", "full", "--device", "cpu", "--methods", "initial", "llm_morph")
    assert run("benchmark", *arguments) == 0
    # No field is predicted again, and the method that is not named stays.
    assert len(before) == 4
    assert before.items() <= times(output).items()
    assert json.loads((output / "benchmark.json").read_text())["methods"].keys() == {"ants", "llm_morph"}
    actual, expected = (
        pd.read_csv(folder / "comparison.csv").set_index("method") for folder in (output, stored_benchmark)
    )
    assert list(actual.index) == ["Initial", "Pre-aligned", "LLM-Morph"]
    for method in actual.index:
        assert actual.loc[method, "dice_mean"] == pytest.approx(expected.loc[method, "dice_mean"], abs=1e-3)
        assert actual.loc[method, "tre_mm_mean"] == pytest.approx(expected.loc[method, "tre_mm_mean"], abs=1e-3)
    capsys.readouterr()
    assert run("benchmark", *arguments, "--minutes", 1) == 2
    assert "comparison" in read_error(capsys)


def move_comparison(home: Path, output: Path, stored_root: Path) -> None:
    """Make a comparison one of the images in ``home``.

    Its fields count as current where they were made from the same files in the same places, which a hash says: that of
    each image's absolute path and content, in the pairs' order.
    """
    folder = output / "llm_morph" / "fold_0"
    move_paths(output, str(stored_root / "home"), str(home))
    with (folder / "pairs.csv").open() as file:
        images = [Path(row[role]) for row in csv.DictReader(file) for role in ("fixed", "moving")]
    sources = [[str(path), digest_packed_image(path)] for path in images]
    record = json.loads((folder / "benchmark.json").read_text())
    record["about"]["registered_from"] = hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()
    (folder / "benchmark.json").write_text(json.dumps(record))


def digest_packed_image(path: Path) -> str:
    """Hash a packed image of less than 64 KiB: its size, and its bytes as the beginning and once more as the end."""
    content = path.read_bytes()
    return hashlib.sha256(str(len(content)).encode() + content + content).hexdigest()


# Transforms and points


def test_stored_fields_warp_images_and_points_as_they_did(stored_root: Path, tmp_path: Path) -> None:
    stored_folder = stored_root / "predictions" / "ensemble"
    images = stored_root / "home" / "raw" / NAME / "imagesTs"
    assert (
        run("apply", "-t", stored_folder / FIELD, "-i", images / f"{MOVING}.nii.gz", "-o", tmp_path / "warped.nii.gz")
        == 0
    )
    warped, expected = voxels(tmp_path / "warped.nii.gz"), voxels(stored_folder / f"warped_{PAIR}.nii.gz")
    assert (np.abs(warped.astype(float) - expected) > 1).sum() <= 2
    assert run("apply", "-t", stored_folder / f"prealign_{PAIR}.tfm", "-i", images / f"{MOVING}.nii.gz", "--like",
               images / f"{FIXED}.nii.gz", "-o", tmp_path / "placed.nii.gz") == 0  # fmt: skip
    assert voxels(tmp_path / "placed.nii.gz").std() > 100
    field = stored_root / "predictions" / "unmerged" / "small" / FIELD
    for suffix in (".csv", ".fcsv", ".mrk.json"):
        points = tmp_path / f"moving{suffix}"
        assert run("apply", "-t", field, "--points", stored_root / "points" / f"fixed{suffix}", "-o", points) == 0
        assert numbers(points) == pytest.approx(numbers(stored_root / "points" / f"moving{suffix}"), abs=1e-4)
        assert numbers(points) != pytest.approx(numbers(stored_root / "points" / f"fixed{suffix}"), abs=1)


def numbers(path: Path) -> list[float]:
    """All numbers of a text file that have a point in them."""
    words = path.read_text().replace(",", " ").replace("[", " ").replace("]", " ").split()
    return [float(word) for word in words if "." in word and word.lstrip("-")[:1].isdecimal()]
