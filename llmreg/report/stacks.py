"""The slices of a pair that go into the page, as many as its budget of bytes allows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from llmreg.report import rendering
from llmreg.report.rendering import PLANES, SIDES, encode_webp, slice_of
from llmreg.report.volumes import Result, Scene, Stage

# The pictures of a pair may take this number of characters in the page, so that ten pairs stay below 15 MB.
BUDGET = 1_350_000
MOST_SLICES, FEWEST_SLICES = 40, 3
# Number of slices of a plane from which the size of a slice is estimated.
PROBES = 4
# With fewer axial slices, the other planes are left out.
ENOUGH_SLICES = 12
# Number of grid lines along the longest side.
GRID_LINES = 24
# Slices whose grey values all are below this one show nothing.
_DARK = 25

Layers = dict[str, str]
# Draws the layers of a slice, given the plane's name and the slice's index.
Draw = Callable[[str, int], Layers]


@dataclass(frozen=True)
class Stacks:
    """Pictures of a pair as base64.

    Attributes:
        planes: by name, ``width`` and ``height`` in pixels, positions ``mm`` of the slices, ``start``, the slice to
            begin with, ``sides``.
        shared: by plane, then by layer, a picture a slice.
        methods: the same for each method; None where it failed.
        uncertainty_mm: for each method the value of the brightest colour; None without uncertainty.
    """

    planes: dict[str, dict[str, Any]]
    shared: dict[str, dict[str, list[str]]]
    methods: list[dict[str, dict[str, list[str]]] | None]
    uncertainty_mm: list[float | None]


def encode_stacks(scene: Scene, results: Sequence[Result | None], budget: int = BUDGET) -> Stacks:
    """Encode as many slices as the budget (characters) has room for, evenly spread over what there is to see."""
    draw_shared = partial(_draw_shared, scene)
    draw_methods = [None if result is None else partial(_draw_method, scene, result) for result in results]
    draws: list[Draw] = [draw_shared, *filter(None, draw_methods)]
    costs = {plane: _estimate_cost(draws, plane, _spread_slices(scene, plane, PROBES)) for plane in PLANES}
    counts = slice_counts(costs, budget)
    # In a plane with few slices, several positions are the same slice.
    chosen = {plane: sorted(set(_spread_slices(scene, plane, count))) for plane, count in counts.items()}
    return Stacks(
        {plane: _describe_plane(scene, plane, indices) for plane, indices in chosen.items()},
        _draw_stacks(draw_shared, chosen),
        [None if draw is None else _draw_stacks(draw, chosen) for draw in draw_methods],
        [None if result is None else result.uncertainty_top for result in results],
    )


def slice_counts(costs: Mapping[str, int], budget: int) -> dict[str, int]:
    """Choose numbers of slices by plane.

    There are half as many coronal and sagittal as axial slices, or axial ones alone where those are too few.

    Args:
        costs: characters of a slice with all its layers, by plane.
        budget: characters of all.
    """
    axial = min(MOST_SLICES, int(budget / (costs["axial"] + (costs["coronal"] + costs["sagittal"]) / 2)))
    if axial >= ENOUGH_SLICES:
        return {"axial": axial, "coronal": axial // 2, "sagittal": axial // 2}
    return {"axial": max(FEWEST_SLICES, min(MOST_SLICES, budget // costs["axial"]))}


def _spread_slices(scene: Scene, plane: str, count: int) -> list[int]:
    """Slices that are evenly spread over the structures, or over what is bright, in the fixed image."""
    labels = scene.fixed.labels
    visible = labels > 0 if labels is not None and labels.any() else scene.fixed.image > _DARK
    across = PLANES[plane]
    slices = np.flatnonzero(visible.any(axis=tuple(axis for axis in range(3) if axis != across)))
    first, last = (slices[0], slices[-1]) if slices.size else (0, visible.shape[across] - 1)
    return np.linspace(first, last, count + 2)[1:-1].round().astype(int).tolist()


def _estimate_cost(draws: Sequence[Draw], plane: str, indices: Sequence[int]) -> int:
    """Characters of a slice with all its layers, as the mean of some slices."""
    layers = [draw(plane, index) for draw in draws for index in indices]
    return sum(len(text) for pictures in layers for text in pictures.values()) // len(indices)


def _draw_stacks(draw: Draw, chosen: Mapping[str, Sequence[int]]) -> dict[str, dict[str, list[str]]]:
    """Draw the chosen slices. Returns the pictures of the slices by plane and layer."""
    stacks = {}
    for plane, indices in chosen.items():
        slices = [draw(plane, index) for index in indices]
        stacks[plane] = {layer: [pictures[layer] for pictures in slices] for layer in slices[0]}
    return stacks


def _describe_plane(scene: Scene, plane: str, indices: Sequence[int]) -> dict[str, Any]:
    rows, columns = slice_of(scene.fixed.image, plane, 0).shape
    component = 2 - PLANES[plane]
    points = np.outer(indices, np.eye(3)[component])
    positions = scene.grid.index_to_physical(points)[:, component]
    return {
        "width": columns,
        "height": rows,
        "mm": positions.round(1).tolist(),
        "start": _find_richest(scene, plane, indices),
        "sides": SIDES[plane],
    }


def _find_richest(scene: Scene, plane: str, indices: Sequence[int]) -> int:
    """Which of the slices shows several large structures rather than one huge or many tiny ones."""
    labels = scene.fixed.labels
    if labels is None or not labels.any():
        return len(indices) // 2
    slices = [slice_of(labels, plane, index) for index in indices]
    return int(np.argmax([np.sqrt(np.unique(labels[labels > 0], return_counts=True)[1]).sum() for labels in slices]))


def _draw_shared(scene: Scene, plane: str, index: int) -> Layers:
    layers = _draw_stage("fixed", scene.fixed, plane, index) | _draw_stage("moving", scene.before, plane, index)
    if scene.prealigned is not None:
        layers |= _draw_stage("prealigned", scene.prealigned, plane, index)
    return layers


def _draw_method(scene: Scene, result: Result, plane: str, index: int) -> Layers:
    layers = _draw_stage("warped", result.warped, plane, index)
    size = scene.grid.size
    lines = rendering.grid_lines(result.flow, plane, index, max(size) / GRID_LINES, rendering.fineness(size))
    layers["grid"] = encode_webp(rendering.grid_picture(lines))
    jacobian = slice_of(result.jacobian, plane, index)
    layers["jacobian"] = encode_webp(rendering.jacobian_picture(jacobian))
    if result.uncertainty is not None and result.uncertainty_top is not None:
        uncertainty = slice_of(result.uncertainty, plane, index)
        layers["uncertainty"] = encode_webp(rendering.uncertainty_picture(uncertainty, result.uncertainty_top))
    return layers


def _draw_stage(name: str, stage: Stage, plane: str, index: int) -> Layers:
    layers = {name: encode_webp(slice_of(stage.image, plane, index))}
    if stage.labels is not None:
        finer = rendering.fineness(stage.labels.shape)
        # Only the fixed image's contours, which lie below those of the others, are solid.
        lines = rendering.contours(slice_of(stage.labels, plane, index), finer, dashed=name != "fixed")
        layers[f"{name}_contours"] = encode_webp(lines)
    return layers
