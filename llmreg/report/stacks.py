"""The slices of a pair that go into the page, as many as its budget of bytes allows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmreg.report import rendering
from llmreg.report.rendering import PLANES, SIDES, slice_of, text_of
from llmreg.report.volumes import Result, Scene, Stage

# Characters that the pictures of a pair may take in the page, so that ten pairs stay below 15 MB.
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
# Uncertainties above this percentile share the brightest colour.
_TOP_PERCENTILE = 99.0

Layers = dict[str, str]


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
    tops = [_find_top(result) for result in results]
    costs = {plane: _estimate_cost(scene, results, tops, plane, _find_extent(scene, plane)) for plane in PLANES}
    planes: dict[str, dict[str, Any]] = {}
    shared: dict[str, dict[str, list[str]]] = {}
    methods: list[dict[str, dict[str, list[str]]] | None] = [None if result is None else {} for result in results]
    for plane, count in slice_counts(costs, budget).items():
        first, last = _find_extent(scene, plane)
        indices = np.unique(np.linspace(first, last, count + 2)[1:-1].round().astype(int)).tolist()
        planes[plane] = _describe_plane(scene, plane, indices)
        shared[plane] = _by_layer([_shared_layers(scene, plane, index) for index in indices])
        for pictures, result, top in zip(methods, results, tops, strict=True):
            if pictures is not None and result is not None:
                pictures[plane] = _by_layer([_layers(scene, result, top, plane, index) for index in indices])
    return Stacks(planes, shared, methods, tops)


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


def _find_extent(scene: Scene, plane: str) -> tuple[int, int]:
    """The first and last slice of the structures, or of what is bright, in the fixed image."""
    labels = scene.fixed.labels
    visible = labels > 0 if labels is not None and labels.any() else scene.fixed.image > _DARK
    across = PLANES[plane]
    slices = np.flatnonzero(visible.any(axis=tuple(axis for axis in range(3) if axis != across)))
    return (int(slices[0]), int(slices[-1])) if slices.size else (0, visible.shape[across] - 1)


def _estimate_cost(
    scene: Scene, results: Sequence[Result | None], tops: Sequence[float | None], plane: str, extent: tuple[int, int]
) -> int:
    """Characters of a slice with all its layers, as the mean of some slices."""
    probed = np.linspace(*extent, PROBES + 2)[1:-1].round().astype(int).tolist()
    layers = [_shared_layers(scene, plane, index) for index in probed]
    for result, top in zip(results, tops, strict=True):
        if result is not None:
            layers += [_layers(scene, result, top, plane, index) for index in probed]
    return sum(len(text) for pictures in layers for text in pictures.values()) // PROBES


def _describe_plane(scene: Scene, plane: str, indices: Sequence[int]) -> dict[str, Any]:
    rows, columns = slice_of(scene.fixed.image, plane, 0).shape
    component = 2 - PLANES[plane]
    points = np.zeros((len(indices), 3))
    points[:, component] = indices
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


def _shared_layers(scene: Scene, plane: str, index: int) -> Layers:
    layers = _stage_layers("fixed", scene.fixed, plane, index, dashed=False)
    layers |= _stage_layers("moving", scene.before, plane, index, dashed=True)
    if scene.prealigned is not None:
        layers |= _stage_layers("prealigned", scene.prealigned, plane, index, dashed=True)
    return layers


def _layers(scene: Scene, result: Result, top: float | None, plane: str, index: int) -> Layers:
    layers = _stage_layers("warped", result.warped, plane, index, dashed=True)
    size = scene.grid.size
    lines = rendering.grid_lines(result.flow, plane, index, max(size) / GRID_LINES, rendering.fineness(size))
    layers["grid"] = text_of(rendering.line_webp(rendering.grid_picture(lines)))
    picture = rendering.jacobian_picture(slice_of(result.jacobian, plane, index))
    layers["jacobian"] = text_of(rendering.colour_webp(picture))
    if result.uncertainty is not None and top is not None:
        picture = rendering.uncertainty_picture(slice_of(result.uncertainty, plane, index), top)
        layers["uncertainty"] = text_of(rendering.colour_webp(picture))
    return layers


def _stage_layers(name: str, stage: Stage, plane: str, index: int, *, dashed: bool) -> Layers:
    layers = {name: text_of(rendering.grey_webp(np.ascontiguousarray(slice_of(stage.image, plane, index))))}
    if stage.labels is not None:
        finer = rendering.fineness(stage.labels.shape)
        lines = rendering.contours(slice_of(stage.labels, plane, index), finer, dashed=dashed)
        layers[f"{name}_contours"] = text_of(rendering.line_webp(lines))
    return layers


def _find_top(result: Result | None) -> float | None:
    if result is None or result.uncertainty is None:
        return None
    return round(max(float(np.percentile(result.uncertainty, _TOP_PERCENTILE)), 0.01), 2)


def _by_layer(slices: Sequence[Layers]) -> dict[str, list[str]]:
    return {layer: [pictures[layer] for pictures in slices] for layer in slices[0]}
