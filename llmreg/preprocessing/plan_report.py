"""``plan_report.html``: the planner's decisions with pictures of the intensities and of the common frame."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from llmreg import pages
from llmreg.data.dataset import Case, Dataset
from llmreg.files import write_text
from llmreg.geometry.grid import Grid, image_to_array, orient_to_lps
from llmreg.geometry.resampling import resample_image
from llmreg.images.image_files import read_image
from llmreg.networks.registry import plugin_of
from llmreg.plans.plan_settings import Normalization
from llmreg.plans.plans import Plans
from llmreg.preprocessing.common_frame import find_foreground, is_ct, normalize_image
from llmreg.preprocessing.fingerprint import CaseFingerprint, Fingerprint

REPORT_FILE = "plan_report.html"
CASES_A_HISTOGRAM = 4
_BINS = 120
# Planes and the axis of an array (z, y, x) that they are perpendicular to.
_PLANES = (("axial", 0), ("coronal", 1), ("sagittal", 2))


def write_report(path: Path, dataset: Dataset, fingerprint: Fingerprint, plans: Plans) -> Path:
    """Write the report of plans: decisions and reasons, intensities and windows, the frame over both modalities."""
    environment = pages.create_environment("llmreg.preprocessing")
    environment.filters["shape"] = _shape
    page = environment.get_template("plan_report.html").render(
        style=Markup(pages.style_sheet()),
        plans=plans,
        facts=_describe_dataset(fingerprint),
        histograms=_embed(draw_histograms(dataset, plans)),
        grids=_embed(draw_frames(dataset, fingerprint, plans)),
    )
    write_text(path, page)
    return path


def _shape(values: Any) -> str:
    return " x ".join(f"{value:g}" for value in values)


def _describe_dataset(fingerprint: Fingerprint) -> list[tuple[str, str]]:
    rows = []
    for modality, name in fingerprint.modalities.items():
        cases = fingerprint.of_modality(modality)
        spacing = np.median([case.spacing for case in cases], axis=0).round(2)
        counts = f"{fingerprint.subjects[modality]} subjects, {len(cases)} cases"
        voxels = f"voxels {fingerprint.anisotropy[modality]:.1f} times as long as wide"
        rows.append((f"{modality} ({name})", f"{counts}, spacing {_shape(spacing)} mm, {voxels}"))
    rows.append(("annotated", f"{100 * fingerprint.annotated_cases:.0f} % of the cases that may be trained on"))
    if fingerprint.structure_voxels:
        label, size = min(fingerprint.structure_voxels.items(), key=lambda item: item[1])
        rows.append(("smallest structure", f"{fingerprint.labels[label]}: {size:.0f} voxels (median)"))
    overlap = [pair.field_of_view_overlap for pair in fingerprint.pairs]
    if overlap:
        rows.append(("fields of view", f"{100 * np.mean(overlap):.0f} % of the fixed one lies in the moving one"))
    for title, key, unit, factor in (
        ("Dice as the images lie", "dice", "%", 100),
        ("distance of a structure's centroids", "displacement_mm", "mm", 1),
        ("the same without the common shift", "deformation_mm", "mm", 1),
    ):
        values = [factor * value for pair in fingerprint.pairs if (value := getattr(pair, key)) is not None]
        if values:
            spread = f"{min(values):.1f} to {max(values):.1f}, {len(values)} pairs"
            rows.append((title, f"{np.mean(values):.1f} {unit} ({spread})"))
    return rows


def _embed(figure: Figure) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=90)
    return pages.data_url(stream.getvalue(), "png")


def draw_histograms(dataset: Dataset, plans: Plans) -> Figure:
    """Draw intensities of some cases of each modality; the clipped ranges are grey."""
    figure = Figure(figsize=(11, 3 * len(plans.normalization)), layout="constrained")
    axes = figure.subplots(len(plans.normalization), 1, squeeze=False)[:, 0]
    for axis, (modality, plan) in zip(axes, plans.normalization.items(), strict=True):
        all_cases = dataset.of_modality(modality)
        cases = [case for case in all_cases if case.name not in dataset.held_out] or list(all_cases)
        for number, case in enumerate(cases[:: max(1, len(cases) // CASES_A_HISTOGRAM)][:CASES_A_HISTOGRAM]):
            _draw_histogram(axis, case, plan, f"C{number}")
        unit = "HU" if plan.scheme == "window" and is_ct(plan.modality) else "intensity as stored"
        title = f"{plan.modality}: {plan.scheme} {plan.lower:g} to {plan.upper:g}"
        axis.set(title=title, xlabel=unit, yticks=[])
        axis.legend(fontsize=8)
    return figure


def _draw_histogram(axis: Axes, case: Case, plan: Normalization, colour: str) -> None:
    image = orient_to_lps(read_image(case.image))
    foreground = find_foreground(image, ct=is_ct(plan.modality)).intensities
    values_of = {"foreground": ("-", foreground)}
    if case.label is not None:
        labels = image_to_array(orient_to_lps(read_image(case.label)))
        values_of["structures"] = "--", image_to_array(image)[labels > 0]
    window = (plan.lower, plan.upper)
    if plan.scheme == "percentiles":
        window = tuple(np.percentile(foreground, window))
    span = window[1] - window[0]
    limits = (window[0] - 0.4 * span, window[1] + 0.4 * span)
    for name, (style, values) in values_of.items():
        if len(values):
            counts, edges = np.histogram(values, _BINS, limits)
            axis.plot(edges[:-1], counts / counts.max().clip(1), style, color=colour, label=f"{case.name}, {name}")
    for low, high in ((limits[0], window[0]), (window[1], limits[1])):
        axis.axvspan(low, high, color="grey", alpha=0.12, linewidth=0)


def draw_frames(dataset: Dataset, fingerprint: Fingerprint, plans: Plans) -> Figure:
    """Draw the middle slices of a case of each modality with the frame and the network's coarsest grid over them."""
    by_name = {case.case: case for case in fingerprint.cases}
    cases = [by_name[plans.prealignment.reference_case]]
    cases += [by_name[dataset.of_modality(m)[0].name] for m in plans.normalization if m != cases[0].modality]
    figure = Figure(figsize=(11, 4 * len(cases)), layout="constrained")
    axes = figure.subplots(len(cases), len(_PLANES), squeeze=False)
    for row, case in zip(axes, cases, strict=True):
        values, padded = _read_centred(dataset, case, plans)
        for axis, (title, across) in zip(row, _PLANES, strict=True):
            _draw_plane(axis, values, padded, plans, across)
            axis.set_title(f"{case.case}, {title}", fontsize=9)
    return figure


def _read_centred(dataset: Dataset, case: CaseFingerprint, plans: Plans) -> tuple[NDArray[Any], Grid]:
    """Read a normalised case on the padded grid, centred in the frame; its values (z, y, x), and that grid."""
    frame = plans.frame
    padded_size = plans.configuration(plans.default_configuration).padded_size
    lower = [(p - n) // 2 for p, n in zip(padded_size, plans.size, strict=True)]
    upper = [p - n - low for p, n, low in zip(padded_size, plans.size, lower, strict=True)]
    padded = frame.pad(lower, upper)
    image, foreground = normalize_image(read_image(dataset.case(case.case).image), plans.normalization[case.modality])
    shift = np.zeros(3) if plans.prealignment.aligned_grid is not None else foreground.centre - frame.centre
    moved = Grid(padded.size, padded.spacing, tuple((np.asarray(padded.origin) + shift).tolist()))
    return image_to_array(resample_image(image, moved)), padded


def _draw_plane(axis: Axes, values: NDArray[Any], padded: Grid, plans: Plans, across: int) -> None:
    frame, spacing = plans.frame, padded.spacing
    # Of the axes x, y, z, those of the picture's columns and rows.
    along, down = (xyz for xyz in range(3) if xyz != 2 - across)
    plane = np.take(values, values.shape[across] // 2, axis=across)
    axis.imshow(plane, cmap="gray", vmin=0, vmax=1, extent=(0, padded.extent[along], padded.extent[down], 0))
    step = plugin_of(plans.network).coarsest_stride(plans.network)
    step *= plans.configuration(plans.default_configuration).downsampling
    for line in range(step, padded.size[along], step):
        axis.axvline(line * spacing[along], color="cyan", linewidth=0.4)
    for line in range(step, padded.size[down], step):
        axis.axhline(line * spacing[down], color="cyan", linewidth=0.4)
    first = (np.asarray(frame.origin) - np.asarray(padded.origin)).round(6)
    left, top = first[along], first[down]
    right, bottom = left + frame.extent[along], top + frame.extent[down]
    axis.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color="gold", linewidth=1.5)
    if across != 0:
        # In coronal and sagittal planes the head is up.
        axis.invert_yaxis()
    axis.set(xticks=[], yticks=[])
