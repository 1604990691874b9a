"""llmreg_benchmark on the tiny study."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from other_programs import SHIFT, replace_programs
from rewritten import recompress
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_study import NAME, check_refusal, model, run_in_this_process, training

from llmreg.commands import benchmark, report, train
from llmreg.comparison import classical_methods, command_lines


@pytest.fixture
def output(environment: Path) -> Path:
    folder = environment / "results" / NAME / "benchmark"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def field_times(output: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in output.glob("*/fold_*/*.nii.gz")}


def test_trained_models_are_reused_and_what_cannot_run_is_a_row(
    environment: Path, output: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    monkeypatch.setattr(classical_methods, "is_installed", lambda method: False)
    arguments = ["-d", "999", "-p", "tiny", "--device", "cpu", "--methods", "initial", "greedy", "llm_morph"]
    assert benchmark.main(arguments) == 0
    printed = capfd.readouterr().out
    assert "picsl-greedy" in printed
    table = pd.read_csv(output / "comparison.csv").set_index("method")
    assert list(table.index) == ["Initial", "Pre-aligned", "LLM-Morph", "greedy"]
    pair_scores = (
        pd.read_csv(output / "llm_morph" / "fold_0" / "metrics.csv").groupby("pair_id").mean(numeric_only=True)
    )
    assert table.loc["LLM-Morph", "dice_mean"] == pytest.approx(pair_scores["dice"].mean())
    assert table.loc["Initial", "dice_mean"] == pytest.approx(pair_scores["initial_dice"].mean())
    assert table.loc["LLM-Morph", "seconds_mean"] > 0
    for suffix in (".md", ".tex", "_structures.png"):
        assert (output / f"comparison{suffix}").stat().st_size > 0
    record = json.loads((output / "benchmark.json").read_text())
    assert record["failed"].keys() == {"greedy"}
    # A training of other minutes belongs to another comparison.
    assert benchmark.main([*arguments, "--minutes", "1"]) == 2
    # The same command again does nothing twice.
    before = field_times(output)
    assert before
    assert benchmark.main(arguments) == 0
    assert field_times(output) == before


@pytest.fixture
def copied_study(environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The study in folders of the test's own, whose commands run in this process."""
    for name in ("raw", "preprocessed", f"results/{NAME}/{model(environment).name}"):
        shutil.copytree(environment / name, tmp_path / name)
    monkeypatch.setenv("llmreg_home", str(tmp_path))
    monkeypatch.setattr(command_lines, "run_command", run_in_this_process)
    return tmp_path


def change_weights(checkpoint: Path) -> None:
    """Change the weights, and nothing that is said of them."""
    with safe_open(checkpoint, "pt") as file:
        tensors = {name: file.get_tensor(name) * 1.001 for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    save_file(tensors, checkpoint, metadata)


def test_what_has_changed_or_failed_is_done_again(copied_study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-d", "999", "-p", "tiny", "--device", "cpu", "--methods", "llm_morph", "-o"]
    output = copied_study / "out"
    assert benchmark.main([*arguments, str(output)]) == 0
    folder = output / "llm_morph" / "fold_0"
    pairs = pd.read_csv(folder / "pairs.csv")
    before = field_times(output)
    # A field that is gone is made again, and no other.
    gone = next(iter(before))
    gone.unlink()
    assert benchmark.main([*arguments, str(output)]) == 0
    assert gone.exists()
    assert {path: time for path, time in field_times(output).items() if path != gone}.items() <= before.items()
    # Changed weights are predicted with anew, but changed times do not count, and fields do not depend on label maps.
    checkpoint, label = model(copied_study) / "fold_0" / "checkpoint_final.safetensors", Path(pairs["fixed_label"][0])
    before = field_times(output)
    checkpoint.touch()
    label.touch()
    assert benchmark.main([*arguments, str(output)]) == 0
    assert field_times(output) == before
    scored_at = (folder / "metrics.csv").stat().st_mtime_ns
    recompress(label)
    assert benchmark.main([*arguments, str(output)]) == 0
    assert field_times(output) == before
    assert (folder / "metrics.csv").stat().st_mtime_ns > scored_at
    change_weights(checkpoint)
    assert benchmark.main([*arguments, str(output)]) == 0
    assert not field_times(output).items() & before.items()
    # A pair that fails is tried again; meanwhile the report does without the method.
    image = Path(pairs["moving"][0])
    content = image.read_bytes()
    image.write_bytes(content[:1000])
    assert benchmark.main([*arguments, str(output)]) == 2
    assert "1 of 2 pairs failed" in capsys.readouterr().err
    record = json.loads((output / "benchmark.json").read_text())
    assert (record["methods"], list(record["failed"])) == ({}, ["llm_morph"])
    image.write_bytes(content)
    assert benchmark.main([*arguments, str(output)]) == 0
    assert pd.read_csv(output / "comparison.csv")["seconds_mean"].iloc[-1] > 0


def test_a_model_of_another_split_is_not_judged_by_what_it_was_trained_on(
    environment: Path, copied_study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = copied_study / "preprocessed" / NAME / "splits.json"
    arguments = ["-d", "999", "-p", "tiny", "--device", "cpu", "--methods", "initial", "llm_morph", "-o"]
    assert benchmark.main([*arguments, str(copied_study / "out")]) == 0
    first, second, *other_folds = json.loads(file.read_text())
    file.write_text(json.dumps([second | {"fold": 0}, first | {"fold": 1}, *other_folds]))
    assert benchmark.main([*arguments, str(copied_study / "out")]) == 2
    check_refusal(capsys, "was trained on other pairs than fold 0 has now")
    assert benchmark.main([*arguments, str(copied_study / "other")]) == 2
    check_refusal(capsys, "was trained on other pairs than fold 0 has now")
    assert train.main([*training("0", "tiny", environment), "--epochs", "2", "--continue"]) == 0
    assert "was trained on other pairs so far" in capsys.readouterr().err
    # Continuing does not make it another training.
    assert benchmark.main([*arguments, str(copied_study / "other")]) == 2
    check_refusal(capsys, "was trained on other pairs than fold 0 has now")


def link_images(raw: Path) -> None:
    """Keep all images elsewhere, under one name, as git-annex and archives by subject do."""
    for path in sorted(raw.glob("*Tr/*.nii.gz")):
        store = raw.parent / "store" / path.parent.name / path.name
        store.mkdir(parents=True)
        path.rename(store / "volume.nii.gz")
        path.symlink_to(store / "volume.nii.gz")


def add_landmarks(raw: Path) -> None:
    """Give every image two landmarks, in voxels."""
    (raw / "keypointsTr").mkdir()
    for image in (raw / "imagesTr").iterdir():
        (raw / "keypointsTr" / image.name.replace(".nii.gz", ".csv")).write_text("3,4,5\n10,9,8\n")


def mean_landmark_error(folder: Path) -> float:
    """Mean distance (mm) of the first pair's landmarks, by SimpleITK."""
    pair = json.loads((folder / "predict.json").read_text())["pairs"][0]
    fixed, moving = (sitk.ReadImage(pair[f"{role}_path"]) for role in ("fixed", "moving"))
    field = sitk.DisplacementFieldTransform(sitk.ReadImage(str(folder / pair["field"]), sitk.sitkVectorFloat64))
    residuals = [
        np.subtract(
            field.TransformPoint(fixed.TransformIndexToPhysicalPoint(place)),
            moving.TransformIndexToPhysicalPoint(place),
        )
        for place in ((3, 4, 5), (10, 9, 8))
    ]
    return float(np.linalg.norm(residuals, axis=1).mean())


def test_other_programs_are_rows_like_any(copied_study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link_images(copied_study / "raw" / NAME)
    add_landmarks(copied_study / "raw" / NAME)
    replace_programs(monkeypatch, SHIFT)
    arguments = ["-d", "999", "-p", "tiny", "--device", "cpu", "-o", str(copied_study / "out"), "--methods"]
    assert benchmark.main([*arguments, "initial", "ants", "llm_morph"]) == 0
    table = pd.read_csv(copied_study / "out" / "comparison.csv").set_index("method")
    assert list(table.index) == ["Initial", "Pre-aligned", "ANTs SyN", "LLM-Morph"]
    # All methods start from the same pre-alignment.
    ants, ours = (pd.read_csv(copied_study / "out" / name / "fold_0" / "metrics.csv") for name in ("ants", "llm_morph"))
    for stage in ("initial_dice", "prealigned_dice"):
        pd.testing.assert_series_equal(ants[stage], ours[stage], atol=2e-3, rtol=0)
    assert (table["peak_memory_gb_mean"].dropna() > 0).all()
    assert ants["tre_mm"][0] == pytest.approx(mean_landmark_error(copied_study / "out" / "ants" / "fold_0"), abs=1e-3)
    assert table["tre_mm_mean"].notna().all()
    before = field_times(copied_study / "out")
    replace_programs(monkeypatch, "raise SystemExit('not called')")
    assert benchmark.main([*arguments, "ants", "llm_morph"]) == 0
    assert field_times(copied_study / "out") == before
    # Another fold leaves the fields alone that exist.
    replace_programs(monkeypatch, SHIFT)
    assert benchmark.main([*arguments, "ants", "--folds", "0", "1"]) == 0
    assert before.items() < field_times(copied_study / "out").items()
    # Other annotated labels are scored anew without registering again; a method that is not named is out of date.
    description = copied_study / "raw" / NAME / "dataset.json"
    content = json.loads(description.read_text())
    for case in itertools.chain(*content["training"].values()):
        case["annotated_labels"] = [1, 2]
    description.write_text(json.dumps(content))
    before = field_times(copied_study / "out")
    assert benchmark.main([*arguments, "ants"]) == 0
    assert field_times(copied_study / "out") == before
    assert set(pd.read_csv(copied_study / "out" / "ants" / "fold_0" / "metrics.csv")["label"]) == {1, 2}
    page = copied_study / "page.html"
    assert report.main([str(copied_study / "out"), "-o", str(page), "--num_processes", "1"]) == 0
    assert "ANTs SyN" in page.read_text()
    assert "LLM-Morph" not in page.read_text()
    # Landmarks are enough.
    shutil.rmtree(copied_study / "raw" / NAME / "labelsTr")
    for case in itertools.chain(*content["training"].values()):
        case.pop("label", None)
    description.write_text(json.dumps(content))
    assert benchmark.main([*arguments, "initial", "ants"]) == 0
    assert field_times(copied_study / "out") == before
    table = pd.read_csv(copied_study / "out" / "comparison.csv").set_index("method")
    assert "dice_mean" not in table
    assert table["tre_mm_mean"].notna().all()
    assert report.main([str(copied_study / "out"), "-o", str(page), "--num_processes", "1"]) == 0


def test_mistakes_are_one_sentence(environment: Path, output: Path, capsys) -> None:
    assert benchmark.main(["-d", "999", "-p", "tiny", "--methods", "demons"]) == 2
    check_refusal(capsys, "There is no method 'demons'")
    assert benchmark.main(["-d", "999", "-p", "tiny", "--methods", "llm_morph", "--folds", "test"]) == 2
    check_refusal(capsys, "fold test", "--folds")
    assert not list(output.glob("*/fold_*/*.nii.gz"))
