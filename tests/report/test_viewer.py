from __future__ import annotations

import pytest
from tiny_predictions import write_predictions

from llmreg.geometry.grid import Grid
from llmreg.report import stacks
from llmreg.report.shown_predictions import MethodResults, read_results, select_pairs
from llmreg.report.viewer import Viewer, draw_pairs


@pytest.fixture(scope="module")
def methods(tmp_path_factory: pytest.TempPathFactory, upright: Grid) -> list[MethodResults]:
    """A method that undoes the shift by half, and one that undoes it and whose second field is missing."""
    folder = tmp_path_factory.mktemp("viewer")
    results = []
    for title, share in (("half", 0.5), ("whole", 1.0)):
        out = write_predictions(folder / title / "out", upright, [3.0, 5.0], share)
        results.append(read_results(title, [out]))
    (folder / "whole" / "out" / "disp_1.nii.gz").unlink()
    return results


@pytest.fixture(scope="module")
def viewer(methods: list[MethodResults]) -> Viewer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stacks, "MOST_SLICES", 3)
        return draw_pairs(methods, select_pairs(methods, 10), 1)


def test_the_best_method_is_shown_first(viewer: Viewer) -> None:
    assert viewer.about["methods"] == ["half", "whole"]
    assert viewer.about["best"] == 1


def test_pairs_come_worst_first_with_scores_before_and_after(viewer: Viewer) -> None:
    pairs = viewer.about["pairs"]
    assert [pair["id"] for pair in pairs] == ["pair 1", "pair 0"]
    assert (pairs[0]["fixed"], pairs[0]["moving"]) == ("F_0001_0000", "M_0001_0001")
    title, before, after = pairs[1]["methods"][1]["numbers"][0]
    assert title == "Dice (%)"
    assert float(before) < float(after)
    assert [label for label, *_ in pairs[1]["methods"][1]["labels"]] == [1, 2]


def test_a_method_that_cannot_be_drawn_is_named(viewer: Viewer) -> None:
    assert [subject for subject, _ in viewer.failed] == ["whole: pair 1"]
    assert viewer.about["pairs"][0]["methods"][1] is None
    assert viewer.pictures[0]["methods"][1] is None
    assert viewer.pictures[1]["methods"][1] is not None


def test_labels_have_names_and_colours(viewer: Viewer) -> None:
    labels = viewer.about["labels"]
    assert labels["2"]["name"] == "organ"
    assert labels["1"]["colour"] != labels["2"]["colour"]


def test_a_pair_without_images_is_left_out(methods: list[MethodResults]) -> None:
    bare = methods[0].pairs["pair 0"].model_copy(update={"fixed_path": None})
    method = MethodResults("bare", {"pair 0": bare}, (), methods[0].scores, methods[0].provenance)
    viewer = draw_pairs([method], select_pairs([method], 1), 1)
    assert viewer.pictures == []
    assert [subject for subject, _ in viewer.failed] == ["pair 0"]
