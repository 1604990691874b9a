"""Whole tables at toy size: the commands of documentation/reproducing-the-paper.md."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from tiny_models import TINY, save_random_model
from tiny_predictions import balls
from tiny_study import run_in_this_process

from llmreg.commands import benchmark, plan_and_preprocess, train
from llmreg.comparison import classical_methods, command_lines, learned_runs
from llmreg.comparison.classical_methods import CLASSICAL
from llmreg.geometry.grid import Grid, array_to_image
from llmreg.images.image_files import write_image
from llmreg.training import loggers

PAGE = Path(__file__).parents[2] / "documentation" / "reproducing-the-paper.md"
NAME = "Dataset101_Balls"
MODELS = ("Llama-2-7b-chat-hf", "Qwen2-7B")


def commands() -> dict[str, tuple[list[str], list[str]]]:
    """Return the arguments of each table's command, and the files that the page says it writes."""
    tables = {}
    for row in re.findall(r"^\|.*`llmreg_benchmark .*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE):
        _, command, files = (cell.strip() for cell in row.strip("|").split("|"))
        arguments = command.strip("`").split()[1:]
        stem, *suffixes = re.split(r" (?=\.)", files.strip("`"))
        name, first = stem.split(".")
        tables[arguments[arguments.index("--methods") + 1]] = (
            arguments,
            [f"{name}.{first}", *(name + s for s in suffixes)],
        )
    return tables


def write_dataset(folder: Path) -> None:
    """Write four people with two balls each, on one grid and in two contrasts; two people are tested."""
    grid = Grid.from_centre((32, 32, 32), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
    names = []
    for person in range(4):
        image, labels = balls(grid, 2.0 * person)
        for modality, values in enumerate((image, 200 - image)):
            names.append(f"Balls_{person:04d}_{modality:04d}.nii.gz")
            part = "Tr" if person < 2 else "Ts"
            write_image(array_to_image(values, grid), folder / f"images{part}" / names[-1])
            write_image(array_to_image(labels, grid), folder / f"labels{part}" / names[-1])
    test = {"fixed": f"./imagesTs/{names[4]}", "moving": f"./imagesTs/{names[7]}"}
    content = {
        "modality": {"0": "MR", "1": "CT"},
        "registration_direction": {"fixed": 0, "moving": 1},
        "pairings": "inter_subject",
        "labels": {"one": 1, "other": 2},
        "registration_test": [test],
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names[:4]],
    }
    (folder / "dataset.json").write_text(json.dumps(content))


@pytest.fixture
def benchmark_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for tables of a planned dataset, with small networks and commands that run in this process."""
    for model in MODELS:
        save_random_model(tmp_path / model, "llama")
    write_dataset(tmp_path / "raw" / NAME)
    monkeypatch.setenv("llmreg_home", str(tmp_path))
    monkeypatch.setattr(classical_methods, "is_installed", lambda method: False)
    monkeypatch.setattr(loggers, "plot", lambda *_: None)
    monkeypatch.setattr(command_lines, "run_command", run_in_this_process)
    planned = ["-d", "101", "-c", "full", "-np", "1", "--llm", str(tmp_path / MODELS[0])]
    assert plan_and_preprocess.main(planned) == 0
    plans = tmp_path / "preprocessed" / NAME / "plans.json"
    content = json.loads(plans.read_text())
    content["network"]["width"] = 4
    # On some processors, bfloat16 gradients of volumes this small are not always finite.
    content["training"] |= {"epochs": 1, "steps_per_epoch": 1, "validation_pairs": 1, "autocast": "none"}
    plans.write_text(json.dumps(content))
    return tmp_path / "results" / NAME / "benchmark"


def test_each_table_is_written_as_the_page_says(benchmark_folder: Path, tmp_path: Path) -> None:
    tables = commands()
    assert list(tables) == ["table1", "table2", "table3", "figure4"]
    rows = {}
    for table, (arguments, files) in tables.items():
        words = [word.replace("/models", str(tmp_path)) for word in arguments]
        assert benchmark.main([*words, "--device", "cpu", "--workers", "0"]) == 0
        for file in files:
            assert (benchmark_folder / file).stat().st_size > 0, file
        rows[table] = list(pd.read_csv(benchmark_folder / f"{table}.csv")["method"])
    assert (benchmark_folder / "table1_structures.png").exists()
    assert set(json.loads((benchmark_folder / "benchmark.json").read_text())["failed"]) == set(CLASSICAL)
    assert rows["table1"] == [
        "Initial",
        "VoxelMorph (small)",
        "VoxelMorph",
        "Dual-PRNet",
        "TransMorph",
        "MambaMorph",
        "LLM-Morph",
        "LLM-Morph, refined",
        "ANTs SyN",
        "greedy",
        "elastix",
        "ConvexAdam",
    ]
    assert len(rows["table2"]) == 9
    # The transformer in place of the layers is as wide as they are.
    vit = json.loads((benchmark_folder.parent / "llm_morph__vit__full" / "plans.json").read_text())["network"]
    assert (vit["blocks"], vit["token_width"]) == ("vit", TINY["llama"]["hidden_size"])
    assert rows["table3"] == ["Initial", "w/o LoRA (llama-2-7b-chat-hf)", "llama-2-7b-chat-hf", "qwen2-7b"]
    assert rows["figure4"] == ["Initial", *(f"layers {first}/{first + 1}, w/o LoRA" for first in (0, 1, 2))]


def test_a_method_is_trained_for_some_minutes(
    benchmark_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learned_runs, "STEPS_PER_EPOCH", 2)
    arguments = ["-d", "101", "--device", "cpu", "--workers", "0", "--folds", "test", "--minutes", "0.0001"]
    assert benchmark.main([*arguments, "--methods", "voxelmorph-small", "voxelmorph-small+refine"]) == 0
    folder = tmp_path / "results" / NAME / "voxelmorph__voxelmorph-small_0.0001min__full"
    assert len((folder / "fold_all" / "training_log.jsonl").read_text().splitlines()) == 1
    # The pairs that count are scored where the table is.
    assert not (folder / "fold_all" / "validation").exists()
    trained = ["--network", "voxelmorph", "--set", "network.size=small", "training.steps_per_epoch=2"]
    trained += ["--as", "voxelmorph-small_0.0001min", "--continue", "--device", "cpu", "--workers", "0"]
    assert train.main(["101", "all", *trained]) == 0
    assert (folder / "fold_all" / "validation" / "metrics.csv").exists()
    assert json.loads((folder / "plans.json").read_text())["network"]["size"] == "small"
    table = pd.read_csv(benchmark_folder / "comparison.csv").set_index("method")
    assert list(table.index) == ["VoxelMorph (small)", "VoxelMorph (small), refined"]
