"""When a learned method is trained and predicted, and when it is left as it is; no command is run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmreg.comparison import command_lines, learned_runs
from llmreg.comparison.benchmark_record import PredictionRun
from llmreg.comparison.benchmark_settings import BenchmarkSettings
from llmreg.comparison.learned_runs import train_and_predict
from llmreg.comparison.methods import Method
from llmreg.data.dataset import Dataset, Pair, pairs_digest
from llmreg.errors import UserError
from llmreg.predictions import PredictedPair, Predictions, write_predictions

PAIRS = (Pair("Toy_0001_0000", "Toy_0001_0001"),)
METHOD = Method("ours", "Ours", "learned")


class Plans:
    """What a comparison asks of plans."""

    plans_name, default_configuration = "default", "half"
    training = SimpleNamespace(epochs=2)

    def digest(self, configuration: str | None = None) -> str:
        return "digest"


@pytest.fixture
def commands(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would be run: a training leaves a checkpoint, a prediction a field."""
    commands: list[list[str]] = []
    state = SimpleNamespace(plans_digest="digest", pairs_sha256=pairs_digest(PAIRS), epochs=2)
    monkeypatch.setenv("llmreg_home", str(tmp_path / "home"))
    for kind in ("raw", "preprocessed"):
        (tmp_path / "home" / kind / dataset.name).mkdir(parents=True)
    monkeypatch.setattr(learned_runs.experiment, "choose_plans", lambda folder, choice: Plans())
    monkeypatch.setattr(learned_runs, "read_state", lambda path: state)
    monkeypatch.setattr(learned_runs.experiment, "fetch_weights", lambda plans: plans)
    monkeypatch.setattr(learned_runs.experiment, "find_fold", lambda *_: ("0", None))
    monkeypatch.setattr(learned_runs.experiment, "usable_cases", lambda *_: [])
    monkeypatch.setattr(learned_runs.experiment, "model_folder", lambda *_: tmp_path / "model")
    monkeypatch.setattr(learned_runs, "pairs_among", lambda *_: PAIRS)

    def run(words: Sequence[str]) -> None:
        commands.append(list(words))
        if words[0] == "train":
            checkpoint = tmp_path / "model" / "fold_0" / "checkpoint_final.safetensors"
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            checkpoint.write_text(f"weights {len(commands)}")
        else:
            folder = Path(words[words.index("-o") + 1])
            (folder / "field.nii.gz").touch()
            pair = PredictedPair(pair_id="a", fixed=PAIRS[0].fixed, moving=PAIRS[0].moving, field="field.nii.gz")
            write_predictions(folder, Predictions(pairs=[pair]))

    monkeypatch.setattr(command_lines, "run_command", run)
    return commands


def names(commands: list[list[str]]) -> list[str]:
    return [words[0] for words in commands]


def test_what_is_done_is_kept_and_what_is_missing_is_done(
    commands: list[list[str]], dataset: Dataset, tmp_path: Path
) -> None:
    def run() -> None:
        train_and_predict(BenchmarkSettings("1"), METHOD, "0", PAIRS, dataset, tmp_path / "out")

    run()
    run()
    assert names(commands) == ["train", "predict"]
    spent = PredictionRun.read(tmp_path / "out")
    assert spent is not None
    # A field that was deleted is predicted again, and its time does not count.
    (tmp_path / "out" / "field.nii.gz").unlink()
    run()
    assert names(commands) == ["train", "predict", "predict"]
    assert PredictionRun.read(tmp_path / "out") == spent
    # Nothing is kept of another training.
    (tmp_path / "out" / "notes.txt").touch()
    (tmp_path / "model" / "fold_0" / "checkpoint_final.safetensors").write_text("other weights")
    run()
    assert names(commands) == ["train", "predict", "predict", "predict"]
    assert not (tmp_path / "out" / "notes.txt").exists()
    # Nothing is kept of other images either.
    dataset.case("Toy_0001_0001").image.write_text("another image")
    run()
    assert len(commands) == 5


def test_a_model_of_other_plans_or_pairs_is_refused(
    commands: list[list[str]], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ({"plans_digest": "other"}, {"pairs_sha256": "other"})
    for change, difference in zip(changes, ("with other plans", "on other pairs than fold 0"), strict=True):
        state = SimpleNamespace(**({"plans_digest": "digest", "pairs_sha256": None, "epochs": 2} | change))
        monkeypatch.setattr(learned_runs, "read_state", lambda path, state=state: state)
        with pytest.raises(UserError, match=f"{tmp_path / 'model'} was trained {difference}"):
            train_and_predict(BenchmarkSettings("1"), METHOD, "0", PAIRS, dataset, tmp_path / "out")
    assert names(commands) == ["train"]


def test_a_prediction_that_crashes_is_an_error_and_its_time_is_known(
    commands: list[list[str]], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = command_lines.run_command

    def crash(words: Sequence[str]) -> None:
        if words[0] == "predict":
            raise UserError("llmreg_predict: ended with exit code 1")
        train(words)

    monkeypatch.setattr(command_lines, "run_command", crash)
    with pytest.raises(UserError, match="exit code 1"):
        train_and_predict(BenchmarkSettings("1"), METHOD, "0", PAIRS, dataset, tmp_path / "out")
    run = PredictionRun.read(tmp_path / "out")
    assert run is not None
    assert run.spent is not None
    assert json.loads((tmp_path / "out" / "benchmark.json").read_text())["about"]["flags"] == []


def test_changed_plans_are_named_after_the_method_and_its_minutes(
    commands: list[list[str]], dataset: Dataset, tmp_path: Path
) -> None:
    settings = BenchmarkSettings("1", plans="mine", minutes=2.0)
    refined = Method("small+refine", "S", "learned", "voxelmorph", ("network.size=small",), 50)
    train_and_predict(settings, refined, "0", PAIRS, dataset, tmp_path / "out")
    training, prediction = commands
    assert training[training.index("--as") + 1] == "mine_small_2min"
    assert prediction[prediction.index("--refine") + 1] == "50"
