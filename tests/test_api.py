"""The public functions and what ``llmreg`` names."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from tiny_predictions import write_predictions

import llmreg
from llmreg import api
from llmreg.geometry.grid import Grid

HEAVY = ("torch", "SimpleITK", "pandas", "scipy", "transformers", "matplotlib")


def test_all_names_exist_and_are_listed() -> None:
    assert sorted(llmreg.__all__) == llmreg.__dir__() == dir(llmreg)
    for name in llmreg.__all__:
        assert getattr(llmreg, name) is not None
    with pytest.raises(AttributeError):
        _ = llmreg.register_everything


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import sys, llmreg; dir(llmreg); sys.exit(', '.join(set({HEAVY}) & set(sys.modules)) or 0)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


def test_every_public_function_and_class_is_documented() -> None:
    for name in set(llmreg.__all__) - {"__version__"}:
        assert (getattr(llmreg, name).__doc__ or "").strip(), name


def test_functions_of_the_api_have_examples() -> None:
    for name in ("plan", "preprocess", "train", "evaluate"):
        assert "Example::" in getattr(api, name).__doc__


def test_evaluating_gives_typed_results_that_agree_with_the_files(tmp_path: Path) -> None:
    grid = Grid.from_centre((24, 22, 20), (1.5,) * 3, (0.0, 0.0, 0.0))
    folder = write_predictions(tmp_path / "out", grid, [3.0, 4.5], uncertainty=False)
    evaluation = llmreg.evaluate(folder, output=tmp_path / "scores", processes=1)
    assert evaluation.folder == tmp_path / "scores"
    dice = evaluation.scores.groupby("pair_id")["dice"].mean()
    assert evaluation.metrics["dice"].mean == pytest.approx(dice.mean())
    assert evaluation.metrics["dice"].sd == pytest.approx(dice.std(ddof=1))
    assert evaluation.metrics["dice"].num_pairs == 2
    assert evaluation.metrics["initial_dice"].mean < evaluation.metrics["dice"].mean
    assert api.read_evaluation(tmp_path / "scores").metrics == evaluation.metrics


def test_names_for_type_checkers_are_those_that_are_imported() -> None:
    for name, home in llmreg._HOME_OF.items():
        assert getattr(import_module(f"llmreg.{home}"), name) is getattr(llmreg, name)
    assert set(llmreg._HOME_OF) | {"__version__"} == set(llmreg.__all__)
