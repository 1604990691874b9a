"""The public functions and what ``llmreg`` names."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_predictions import write_predictions

import llmreg
from llmreg import api
from llmreg.errors import BadArgument, UnknownName
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


def test_a_plain_script_needs_no_guard_for_other_processes(tmp_path: Path) -> None:
    grid = Grid.from_centre((24, 22, 20), (1.5,) * 3, (0.0, 0.0, 0.0))
    folder = write_predictions(tmp_path / "out", grid, [3.0, 4.5], uncertainty=False)
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nimport llmreg\n"
        "print('begins', file=sys.stderr)\n"
        "print(llmreg.evaluate(sys.argv[1]).metrics['dice'].num_pairs)\n"
    )
    process = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout.split()[-1:]) == (0, ["2"]), process.stderr
    assert process.stderr.count("begins") == 1


@pytest.mark.parametrize("function", [llmreg.plan, llmreg.preprocess, llmreg.evaluate])
def test_no_other_processes_are_started_by_default(function: Callable[..., Any]) -> None:
    assert inspect.signature(function).parameters["processes"].default == 1
    assert llmreg.TrainingOptions().workers == 0


FILES = llmreg.ApplyInputs("moving.nii.gz")
# What is called, and the argument or the kind of name that the error names.
MISTAKES: list[tuple[Callable[[], Any], str]] = [
    (lambda: llmreg.plan(1, processes=-1), "processes"),
    (lambda: llmreg.plan(1, processes=0), "processes"),
    (lambda: llmreg.plan(1, memory_gb=-1), "memory_gb"),
    (lambda: llmreg.preprocess(1, processes=1.5), "processes"),  # type: ignore[arg-type]
    (lambda: llmreg.PlannerOverrides(spacing=(1, 2, -3)), "spacing"),
    (lambda: llmreg.PlannerOverrides(spacing=(1, 2)), "spacing"),
    (lambda: llmreg.PlannerOverrides(spacing=2.0), "spacing"),  # type: ignore[arg-type]
    (lambda: llmreg.PlannerOverrides(configuration="quarter"), "configuration"),
    (lambda: llmreg.train(1, 0, plans=3), "plans"),  # type: ignore[arg-type]
    (lambda: llmreg.TrainingOptions(epochs=0), "epochs"),
    (lambda: llmreg.TrainingOptions(epochs=-1), "epochs"),
    (lambda: llmreg.TrainingOptions(minutes=0), "minutes"),
    (lambda: llmreg.TrainingOptions(minutes=float("nan")), "minutes"),
    (lambda: llmreg.TrainingOptions(workers=-1), "workers"),
    (lambda: llmreg.TrainingOptions(loggers=("foo",)), "logger"),
    (lambda: llmreg.RegistrationOptions(refine=-1), "refine"),
    (lambda: llmreg.ImageInput(np.zeros((2, 2, 2))), "image"),  # type: ignore[arg-type]
    (lambda: llmreg.evaluate("out", processes=0), "processes"),
    (lambda: llmreg.evaluate("out", convention="xyz"), "convention"),  # type: ignore[arg-type]
    (lambda: llmreg.evaluate("out", label_interpolation="cubic"), "label_interpolation"),  # type: ignore[arg-type]
    (lambda: llmreg.ApplyInputs(labels=3), "labels"),  # type: ignore[arg-type]
    (lambda: llmreg.ApplyOptions("cubic"), "interpolation"),  # type: ignore[arg-type]
    (lambda: llmreg.ApplyOptions(convention="xyz"), "convention"),  # type: ignore[arg-type]
    (lambda: llmreg.apply([], FILES, "out"), "transforms"),
    (lambda: llmreg.apply(None, FILES, "out"), "transforms"),  # type: ignore[arg-type]
    (lambda: llmreg.apply("field.nii.gz", "moving.nii.gz", "out"), "inputs"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "argument"), MISTAKES)
def test_mistakes_are_named(call: Callable[[], Any], argument: str) -> None:
    with pytest.raises((BadArgument, UnknownName)) as refusal:
        call()
    error = refusal.value
    assert (error.kind if isinstance(error, UnknownName) else error.argument) == argument
    assert "\n" not in str(error)
