"""Checks of arguments, which let None pass and otherwise say what to give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmreg.arguments import check_choice, check_count, check_positive, to_paths
from llmreg.errors import BadArgument, UnknownName


def test_values_that_fit_pass() -> None:
    for value in (None, "a"):
        check_choice("letter", value, ("a", "b"))
    for count in (None, 1, np.int64(3)):
        check_count("epochs", count, 1)
    check_count("workers", 0)
    for number in (None, 1e-9, 3, np.float32(0.5)):
        check_positive("minutes", number)


def test_a_name_that_is_no_choice_is_refused_with_the_choices() -> None:
    with pytest.raises(UnknownName) as refusal:
        check_choice("letter", "c", ("a", "b"))
    assert (refusal.value.kind, refusal.value.name, refusal.value.known) == ("letter", "c", ("a", "b"))


@pytest.mark.parametrize("value", [0, -1, 1.0, 1.5, "1", float("nan"), [1]])
def test_what_is_no_count_is_refused(value: object) -> None:
    with pytest.raises(BadArgument) as refusal:
        check_count("epochs", value, 1)
    assert refusal.value.argument == "epochs"


@pytest.mark.parametrize("value", [0, -0.5, float("nan"), float("inf"), "1", (1, 2)])
def test_what_is_no_number_above_0_is_refused(value: object) -> None:
    with pytest.raises(BadArgument) as refusal:
        check_positive("minutes", value)
    assert refusal.value.argument == "minutes"


def test_paths_are_given_alone_or_several_as_text_or_paths() -> None:
    assert to_paths("images", "a.nii.gz") == to_paths("images", Path("a.nii.gz")) == (Path("a.nii.gz"),)
    assert to_paths("images", ["a", Path("b")]) == to_paths("images", iter(("a", "b"))) == (Path("a"), Path("b"))
    assert to_paths("images", ()) == ()


@pytest.mark.parametrize("files", [None, 3, [3], [None]])
def test_what_is_no_path_is_refused(files: object) -> None:
    with pytest.raises(BadArgument) as refusal:
        to_paths("images", files)  # type: ignore[arg-type]
    assert refusal.value.argument == "images"
