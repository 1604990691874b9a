"""``plan_report.html``: the planner's decisions where people look rather than read."""

from __future__ import annotations

import html
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llmreg import pages
from llmreg.data.dataset import Case, Dataset
from llmreg.data.modalities import is_ct
from llmreg.files import write_text
from llmreg.geometry.field import resample_image
from llmreg.geometry.grid import Grid
from llmreg.geometry.io import image_to_array, oriented_lps, read_image
from llmreg.plans.plans import Normalization, Plans
from llmreg.preprocessing.fingerprint import CaseFingerprint, Fingerprint
from llmreg.preprocessing.foreground import find_foreground
from llmreg.preprocessing.normalization import normalized

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REPORT_FILE = "plan_report.html"
CASES_A_HISTOGRAM = 4
_BINS = 120
_PLANES = (("axial", 0), ("coronal", 1), ("sagittal", 2))
_TOKEN = 16


def write_report(path: Path, dataset: Dataset, fingerprint: Fingerprint, plans: Plans) -> Path:
    """Write the report of plans: decisions and reasons, intensities and windows, the grid over both modalities."""
    parts = [
        f"<h1>Plans of {html.escape(plans.dataset_name)}</h1>",
        "<p>What llmreg found in the dataset, what it decided, and why. To decide otherwise, edit <code>plans.json"
        "</code> beside this file, or train with <code>--set key=value --as NAME</code>.</p>",
        "<h2>Decisions</h2>",
        _table(("decision", "why"), list(plans.reasons.items())),
        "<h2>Configurations</h2>",
        _configurations(plans),
        "<h2>The dataset</h2>",
        _dataset(fingerprint),
        "<h2>Intensities</h2><p>Histograms over the foreground of some cases, and over the annotated structures where "
        "there are any. Grey: what is clipped.</p>",
        _picture(_histograms(dataset, plans), "Histograms of each modality's intensities and clipping"),
        "<h2>The common frame</h2><p>A case of each modality, centred in the frame (pre-alignment comes later). "
        f"Yellow: the frame. Thin lines: the tokens of the configuration {plans.default_configuration}, which reach "
        "beyond the frame where it is padded.</p>",
        _picture(_grids(dataset, fingerprint, plans), "Slices of each modality under the frame and the tokens"),
    ]
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Plans</title><style>{pages.style()}</style>'
    write_text(path, page + "\n".join(parts) + "</html>\n")
    return path


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    titles = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in head)
    lines = ["".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows]
    top = f"<thead><tr>{titles}</tr></thead>" if any(head) else ""
    return f"<table>{top}<tbody>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</tbody></table>"


def _configurations(plans: Plans) -> str:
    rows = []
    for name, planned in plans.configurations.items():
        default = " (default)" if name == plans.default_configuration else ""
        shapes = [_shape(shape) for shape in (planned.padded_size, planned.network_shape, planned.token_grid)]
        rows.append((name + default, *shapes, planned.token_length, planned.recompute, planned.memory_gb))
    head = ("name", "padded size", "network", "tokens", "L", "finest level twice", "training memory (GB)")
    return f"<p>The frame: {_shape(plans.size)} voxels of {_shape(plans.spacing)} mm.</p>" + _table(head, rows)


def _shape(values: Any) -> str:
    return " x ".join(f"{value:g}" for value in values)


def _dataset(fingerprint: Fingerprint) -> str:
    rows = []
    for modality, name in fingerprint.modalities.items():
        cases = fingerprint.of_modality(modality)
        spacing = np.median([case.spacing for case in cases], axis=0).round(2)
        rows.append(
            (
                f"{modality} ({name})",
                f"{fingerprint.subjects[modality]} subjects, {len(cases)} cases, spacing {_shape(spacing)} mm, voxels "
                f"{fingerprint.anisotropy[modality]:.1f} times as long as wide",
            )
        )
    rows.append(("annotated", f"{100 * fingerprint.annotated_cases:.0f} % of the cases that may be trained on"))
    if fingerprint.structure_voxels:
        smallest = min(fingerprint.structure_voxels, key=fingerprint.structure_voxels.__getitem__)
        voxels = fingerprint.structure_voxels[smallest]
        rows.append(("smallest structure", f"{fingerprint.labels[smallest]}: {voxels:.0f} voxels (median)"))
    overlap = [pair.field_of_view_overlap for pair in fingerprint.pairs]
    if overlap:
        rows.append(("fields of view", f"{100 * np.mean(overlap):.0f} % of the fixed one lies in the moving one"))
    for title, key, unit, factor in (
        ("Dice as the images lie", "dice", "%", 100),
        ("distance of a structure's centroids", "displacement_mm", "mm", 1),
        ("the same without the common shift", "deformation_mm", "mm", 1),
    ):
        found = [getattr(pair, key) for pair in fingerprint.pairs if getattr(pair, key) is not None]
        if found:
            mean, low, high = (factor * value for value in (np.mean(found), min(found), max(found)))
            rows.append((title, f"{mean:.1f} {unit} ({low:.1f} to {high:.1f}, {len(found)} pairs)"))
    return _table(("", ""), rows)


def _histograms(dataset: Dataset, plans: Plans) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3 * len(plans.normalization)), layout="constrained")
    axes = figure.subplots(len(plans.normalization), 1, squeeze=False)[:, 0]
    for axis, (modality, plan) in zip(axes, plans.normalization.items(), strict=True):
        cases = [case for case in dataset.of_modality(modality) if case.name not in dataset.held_out]
        cases = cases or list(dataset.of_modality(modality))
        for number, case in enumerate(cases[:: max(1, len(cases) // CASES_A_HISTOGRAM)][:CASES_A_HISTOGRAM]):
            _histogram(axis, case, plan, f"C{number}")
        axis.set_title(f"{plan.modality}: {plan.scheme} {plan.lower:g} to {plan.upper:g}")
        axis.set_xlabel("HU" if plan.scheme == "window" and is_ct(plan.modality) else "intensity as stored")
        axis.set_yticks([])
        axis.legend(fontsize=8)
    return figure


def _histogram(axis: Axes, case: Case, plan: Normalization, colour: str) -> None:
    image = oriented_lps(read_image(case.image))
    inside = find_foreground(image, is_ct(plan.modality)).intensities
    window = (plan.lower, plan.upper)
    if plan.scheme == "percentiles":
        window = tuple(np.percentile(inside, window))
    span = window[1] - window[0]
    shown = (window[0] - 0.4 * span, window[1] + 0.4 * span)
    for values, style, name in ((inside, "-", "foreground"), (_annotated(image, case), "--", "structures")):
        if len(values):
            counts, edges = np.histogram(values, _BINS, shown)
            axis.plot(edges[:-1], counts / counts.max().clip(1), style, color=colour, label=f"{case.name}, {name}")
    for low, high in ((shown[0], window[0]), (window[1], shown[1])):
        axis.axvspan(low, high, color="grey", alpha=0.12, linewidth=0)


def _annotated(image: Any, case: Case) -> NDArray[Any]:
    if case.label is None:
        return np.zeros(0)
    return image_to_array(image)[image_to_array(oriented_lps(read_image(case.label))) > 0]


def _grids(dataset: Dataset, fingerprint: Fingerprint, plans: Plans) -> Figure:
    from matplotlib.figure import Figure

    known = {case.case: case for case in fingerprint.cases}
    shown = [next(c for c in fingerprint.cases if c.case == plans.prealignment.reference_case)]
    shown += [known[dataset.of_modality(m)[0].name] for m in plans.normalization if m != shown[0].modality]
    figure = Figure(figsize=(11, 4 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), len(_PLANES), squeeze=False)
    for row, case in zip(axes, shown, strict=True):
        values, wide, frame = _padded_view(dataset, case, plans)
        for axis, (title, across) in zip(row, _PLANES, strict=True):
            _draw_plane(axis, values, wide, frame, plans, across)
            axis.set_title(f"{case.case}, {title}", fontsize=9)
    return figure


def _padded_view(dataset: Dataset, case: CaseFingerprint, plans: Plans) -> tuple[NDArray[Any], Grid, Grid]:
    """The case, centred, on the padded grid; that grid; and the frame in it."""
    frame = plans.frame
    padded = plans.configuration(plans.default_configuration).padded_size
    lower = [(p - n) // 2 for p, n in zip(padded, plans.size, strict=True)]
    upper = [p - n - low for p, n, low in zip(padded, plans.size, lower, strict=True)]
    wide = frame.padded(lower, upper)
    image, foreground = normalized(read_image(dataset.case(case.case).image), plans.normalization[case.modality])
    shift = np.zeros(3) if plans.prealignment.aligned_grid is not None else foreground.centre - frame.centre
    moved = Grid(wide.size, wide.spacing, tuple((np.asarray(wide.origin) + shift).tolist()))
    return image_to_array(resample_image(image, moved)), wide, frame


def _draw_plane(axis: Axes, values: NDArray[Any], wide: Grid, frame: Grid, plans: Plans, across: int) -> None:
    plane = np.take(values, values.shape[across] // 2, axis=across)
    # Array axes are z, y, x; the picture's columns run along the last that is left.
    down, along = (axis for axis in (2, 1, 0) if axis != 2 - across)
    down, along = max(down, along), min(down, along)
    spacing = wide.spacing
    extent = (0, wide.extent[along], wide.extent[down], 0)
    # Seen from the front and the side, the head is up.
    up = across != 0
    axis.imshow(plane, cmap="gray", vmin=0, vmax=1, extent=extent)
    step = _TOKEN * plans.configuration(plans.default_configuration).downsampling
    for line in range(step, wide.size[along], step):
        axis.axvline(line * spacing[along], color="cyan", linewidth=0.4)
    for line in range(step, wide.size[down], step):
        axis.axhline(line * spacing[down], color="cyan", linewidth=0.4)
    first = (np.asarray(frame.origin) - np.asarray(wide.origin)).round(6)
    left, top = first[along], first[down]
    right, bottom = left + frame.extent[along], top + frame.extent[down]
    axis.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color="gold", linewidth=1.5)
    if up:
        axis.invert_yaxis()
    axis.set_xticks([])
    axis.set_yticks([])


def _picture(figure: Figure, alt: str) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=90)
    return f'<img alt="{html.escape(alt)}" src="{pages.embedded(stream.getvalue(), "png")}">'
