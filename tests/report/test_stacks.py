from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_predictions import write_predictions

from llmreg.geometry.grid import Grid
from llmreg.report.shown_predictions import read_results, select_pairs
from llmreg.report.stacks import FEWEST_SLICES, MOST_SLICES, Stacks, encode_stacks, slice_counts
from llmreg.report.volumes import Result, Scene, read_result, read_scene


@pytest.fixture(scope="module")
def scene_and_result(tmp_path_factory, upright: Grid) -> tuple[Scene, Result]:
    folder = write_predictions(tmp_path_factory.mktemp("stacks") / "out", upright, [3.75])
    (pair,) = select_pairs([read_results("method", [Path(folder)])], 1)
    scene = read_scene(pair)
    return scene, read_result(scene, pair.predictions[0])


def characters(stacks: Stacks) -> int:
    planes = [plane for stack in (stacks.shared, *stacks.methods) if stack for plane in stack.values()]
    return sum(len(text) for plane in planes for layer in plane.values() for text in layer)


@pytest.mark.parametrize("budget", [20_000, 60_000])
def test_a_pair_takes_no_more_than_its_budget(scene_and_result: tuple[Scene, Result], budget: int) -> None:
    scene, result = scene_and_result
    single = encode_stacks(scene, [result], budget)
    assert characters(single) < 1.1 * budget
    # With more methods there are fewer slices, and not more characters.
    three = encode_stacks(scene, [result, None, result], budget)
    assert characters(three) < 1.1 * budget
    assert len(three.planes["axial"]["mm"]) <= len(single.planes["axial"]["mm"])
    assert three.methods[1] is None


def test_slices_are_spread_over_the_structures(scene_and_result: tuple[Scene, Result]) -> None:
    scene, result = scene_and_result
    stacks = encode_stacks(scene, [result], 150_000)
    labelled = scene.grid.index_to_physical(np.argwhere(scene.fixed.labels > 0)[:, ::-1])
    for plane, component in (("axial", 2), ("coronal", 1), ("sagittal", 0)):
        places = np.array(stacks.planes[plane]["mm"])
        assert (np.diff(places) > 0).all()
        assert places.min() > labelled[:, component].min() - 0.1
        assert places.max() < labelled[:, component].max() + 0.1
        assert 0 < stacks.planes[plane]["start"] < len(places) - 1
        assert np.ptp(places) > 0.6 * np.ptp(labelled[:, component])


def test_the_other_planes_come_when_there_is_room() -> None:
    costs = {"axial": 1000, "coronal": 800, "sagittal": 1200}
    assert slice_counts(costs, 10**9) == {
        "axial": MOST_SLICES,
        "coronal": MOST_SLICES // 2,
        "sagittal": MOST_SLICES // 2,
    }
    assert slice_counts(costs, 40_000) == {"axial": 20, "coronal": 10, "sagittal": 10}
    assert slice_counts(costs, 20_000) == {"axial": 20}
    assert slice_counts(costs, 100) == {"axial": FEWEST_SLICES}
