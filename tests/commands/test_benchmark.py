"""llmreg_benchmark on the tiny study."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from other_programs import SHIFT, made
from tiny_study import NAME, in_this_process, model, refused, training

from llmreg.benchmark import learned, peers
from llmreg.commands import benchmark, report, train


@pytest.fixture
def output(environment: Path) -> Path:
    folder = environment / "results" / NAME / "benchmark"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def written(output: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in output.glob("*/fold_*/*.nii.gz")}


def test_trained_models_are_reused_and_what_cannot_run_is_a_row(
    environment: Path, output: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    arguments = ["-d", "999", "-p", "tiny", "--device", "cpu", "--methods", "initial", "greedy", "llm_morph"]
    assert benchmark.main(arguments) == 0
    shown = capfd.readouterr().out
    assert "greedy is not installed: pip install picsl-greedy" in shown
    table = pd.read_csv(output / "comparison.csv").set_index("method")
    assert list(table.index) == ["Initial", "Pre-aligned", "LLM-Morph", "greedy"]
    scored = pd.read_csv(output / "llm_morph" / "fold_0" / "metrics.csv").groupby("pair_id").mean(numeric_only=True)
    assert table.loc["LLM-Morph", "dice_mean"] == pytest.approx(scored["dice"].mean())
    assert table.loc["Initial", "dice_mean"] == pytest.approx(scored["initial_dice"].mean())
    assert table.loc["LLM-Morph", "seconds_mean"] > 0
    for suffix in (".md", ".tex", "_structures.png"):
        assert (output / f"comparison{suffix}").stat().st_size > 0
    kept = json.loads((output / "benchmark.json").read_text())
    assert kept["failed"].keys() == {"greedy"}
    # Other folds or minutes would be compared with what they cannot be compared with.
    assert benchmark.main([*arguments, "--minutes", "1"]) == 2
    # Again, nothing is done twice.
    before = written(output)
    assert before
    assert benchmark.main(arguments) == 0
    assert written(output) == before


@pytest.fixture
def copied(environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The study in folders of the test's own, whose commands run in this process."""
    for name in ("raw", "preprocessed", f"results/{NAME}/{model(environment).name}"):
        shutil.copytree(environment / name, tmp_path / name)
    monkeypatch.setenv("llmreg_home", str(tmp_path))
    monkeypatch.setattr(learned, "_run", in_this_process)
    return tmp_path


def test_what_has_changed_or_failed_is_done_again(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-d", "999", "-p", "tiny", "--device", "cpu", "--methods", "llm_morph", "-o"]
    output = copied / "out"
    assert benchmark.main([*arguments, str(output)]) == 0
    folder = output / "llm_morph" / "fold_0"
    pairs = pd.read_csv(folder / "pairs.csv")
    before = written(output)
    # A field that is gone is made again, and no other.
    gone = next(iter(before))
    gone.unlink()
    assert benchmark.main([*arguments, str(output)]) == 0
    assert gone.exists()
    assert {path: time for path, time in written(output).items() if path != gone}.items() <= before.items()
    # A training that went on and a label map that was mended count.
    for changed in (model(copied) / "fold_0" / "checkpoint_final.safetensors", Path(pairs["fixed_label"][0])):
        before = written(output)
        changed.touch()
        assert benchmark.main([*arguments, str(output)]) == 0
        assert not written(output).items() & before.items()
    # A pair that fails is tried again; meanwhile the report does without the method.
    image = Path(pairs["moving"][0])
    content = image.read_bytes()
    image.write_bytes(content[:1000])
    assert benchmark.main([*arguments, str(output)]) == 2
    assert "error: No method could be scored: 1 of 2 pairs failed" in capsys.readouterr().err
    about = json.loads((output / "benchmark.json").read_text())
    assert (about["methods"], list(about["failed"])) == ({}, ["llm_morph"])
    image.write_bytes(content)
    assert benchmark.main([*arguments, str(output)]) == 0
    assert pd.read_csv(output / "comparison.csv")["seconds_mean"].iloc[-1] > 0


def test_a_model_of_another_split_is_not_judged_by_what_it_was_trained_on(
    environment: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = copied / "preprocessed" / NAME / "splits.json"
    arguments = ["-d", "999", "-p", "tiny", "--device", "cpu", "--methods", "initial", "llm_morph", "-o"]
    assert benchmark.main([*arguments, str(copied / "out")]) == 0
    first, second, *others = json.loads(file.read_text())
    file.write_text(json.dumps([second | {"fold": 0}, first | {"fold": 1}, *others]))
    assert benchmark.main([*arguments, str(copied / "out")]) == 2
    refused(capsys, "other plans, pairs, folds or minutes")
    assert benchmark.main([*arguments, str(copied / "other")]) == 2
    refused(capsys, "was trained on other pairs than fold 0 has now")
    assert train.main([*training("0", "tiny", environment), "--epochs", "2", "--continue"]) == 0
    assert "was trained on other pairs so far" in capsys.readouterr().err
    # Going on makes no other training of it.
    assert benchmark.main([*arguments, str(copied / "other")]) == 2
    refused(capsys, "was trained on other pairs than fold 0 has now")


def test_other_programs_are_rows_like_any(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "missing", lambda method: None)
    monkeypatch.setattr(peers, "_command", made(SHIFT))
    arguments = ["-d", "999", "-p", "tiny", "--device", "cpu", "-o", str(copied / "out"), "--methods"]
    assert benchmark.main([*arguments, "initial", "ants", "llm_morph"]) == 0
    table = pd.read_csv(copied / "out" / "comparison.csv").set_index("method")
    assert list(table.index) == ["Initial", "Pre-aligned", "ANTs SyN", "LLM-Morph"]
    # All start from the same.
    ants, ours = (pd.read_csv(copied / "out" / name / "fold_0" / "metrics.csv") for name in ("ants", "llm_morph"))
    for stage in ("initial_dice", "prealigned_dice"):
        pd.testing.assert_series_equal(ants[stage], ours[stage], atol=2e-3, rtol=0)
    assert (table["peak_memory_gb_mean"].dropna() > 0).all()
    before = written(copied / "out")
    monkeypatch.setattr(peers, "_command", made("raise SystemExit('not called')"))
    assert benchmark.main([*arguments, "ants", "llm_morph"]) == 0
    assert written(copied / "out") == before
    # What else counts as annotated is scored anew, without registering again; who is not named is out of date.
    description = copied / "raw" / NAME / "dataset.json"
    content = json.loads(description.read_text())
    for case in itertools.chain(*content["training"].values()):
        case["annotated_labels"] = [1, 2]
    description.write_text(json.dumps(content))
    assert benchmark.main([*arguments, "ants"]) == 0
    assert written(copied / "out") == before
    assert set(pd.read_csv(copied / "out" / "ants" / "fold_0" / "metrics.csv")["label"]) == {1, 2}
    page = copied / "page.html"
    assert report.main([str(copied / "out"), "-o", str(page), "--num_processes", "1"]) == 0
    assert "ANTs SyN" in page.read_text()
    assert "LLM-Morph" not in page.read_text()


def test_mistakes_are_one_sentence(environment: Path, output: Path, capsys) -> None:
    assert benchmark.main(["-d", "999", "-p", "tiny", "--methods", "demons"]) == 2
    refused(capsys, "There is no method 'demons'")
    assert benchmark.main(["-d", "999", "-p", "tiny", "--methods", "llm_morph", "--folds", "test"]) == 2
    refused(capsys, "no labelled pairs to judge by in fold test")
    assert not list(output.glob("*/fold_*/*.nii.gz"))
