"""``plan_report.html``: the planner's decisions with pictures of the intensities and of the common frame."""

import io
from dataclasses import replace
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
from llmreg.networks.network_registry import plugin_of
from llmreg.plans.plan_settings import Normalization
from llmreg.plans.plans import Plans
from llmreg.preprocessing.common_frame import find_foreground, is_ct, normalize_image
from llmreg.preprocessing.dataset_alignment import sample_evenly
from llmreg.preprocessing.fingerprint import Fingerprint

REPORT_FILE = "plan_report.html"
CASES_A_HISTOGRAM = 4
# Each plane has the axis of an array (z, y, x) to which it is perpendicular.
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
        grids=_embed(draw_frames(dataset, plans)),
    )
    write_text(path, page)
    return path


def _shape(values: Any) -> str:
    return " x ".join(f"{value:g}" for value in values)


def _describe_dataset(fingerprint: Fingerprint) -> list[tuple[str, str]]:
    rows = []
    for modality, name in fingerprint.modalities.items():
        cases = [case for case in fingerprint.cases if case.modality == modality]
        spacing = np.median([case.spacing for case in cases], axis=0).round(2)
        rows.append(
            (
                f"{modality} ({name})",
                f"{fingerprint.subjects[modality]} subjects, {len(cases)} cases, spacing {_shape(spacing)} mm, "
                f"voxels {fingerprint.anisotropy[modality]:.1f} times as long as wide",
            )
        )
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
    for axis, (modality, normalization) in zip(axes, plans.normalization.items(), strict=True):
        cases = [case for case in dataset.trainable_cases if case.modality == modality] or dataset.of_modality(modality)
        for number, case in enumerate(sample_evenly(cases, CASES_A_HISTOGRAM)):
            _draw_histogram(axis, case, normalization, f"C{number}")
        lower, upper = normalization.lower, normalization.upper
        axis.set(
            title=f"{normalization.modality}: {normalization.scheme} {lower:g} to {upper:g}",
            xlabel="HU"
            if normalization.scheme == "window" and is_ct(normalization.modality)
            else "intensity as stored",
            yticks=[],
        )
        axis.legend(fontsize=8)
    return figure


def _draw_histogram(axis: Axes, case: Case, normalization: Normalization, colour: str) -> None:
    image = orient_to_lps(read_image(case.image))
    foreground = find_foreground(image, ct=is_ct(normalization.modality)).intensities
    values_of = {"foreground": ("-", foreground)}
    if case.label is not None:
        labels = image_to_array(orient_to_lps(read_image(case.label)))
        values_of["structures"] = "--", image_to_array(image)[labels > 0]
    window = (normalization.lower, normalization.upper)
    if normalization.scheme == "percentiles":
        window = tuple(np.percentile(foreground, window))
    span = window[1] - window[0]
    limits = (window[0] - 0.4 * span, window[1] + 0.4 * span)
    for name, (style, values) in values_of.items():
        if len(values):
            counts, edges = np.histogram(values, bins=120, range=limits)
            axis.plot(edges[:-1], counts / counts.max().clip(1), style, color=colour, label=f"{case.name}, {name}")
    for low, high in ((limits[0], window[0]), (window[1], limits[1])):
        axis.axvspan(low, high, color="grey", alpha=0.12, linewidth=0)


def draw_frames(dataset: Dataset, plans: Plans) -> Figure:
    """Draw the middle slices of a case of each modality with the frame and the network's coarsest grid over them."""
    cases = [dataset.case(plans.prealignment.reference_case)]
    cases += [dataset.of_modality(m)[0] for m in plans.normalization if m != cases[0].modality]
    figure = Figure(figsize=(11, 4 * len(cases)), layout="constrained")
    axes = figure.subplots(len(cases), len(_PLANES), squeeze=False)
    for row, case in zip(axes, cases, strict=True):
        values, padded = _read_centred(case, plans)
        for axis, (title, across) in zip(row, _PLANES, strict=True):
            _draw_plane(axis, values, padded, plans, across)
            axis.set_title(f"{case.name}, {title}", fontsize=9)
    return figure


def _read_centred(case: Case, plans: Plans) -> tuple[NDArray[Any], Grid]:
    """Read a case, normalised and centred in the frame: its values (z, y, x) on the padded grid, and that grid."""
    added = np.subtract(plans.configuration(plans.default_configuration).padded_size, plans.size)
    padded = plans.frame.pad((added // 2).tolist(), (added - added // 2).tolist())
    image, foreground = normalize_image(read_image(case.image), plans.normalization[case.modality])
    shift = np.zeros(3) if plans.prealignment.aligned_grid is not None else foreground.centre - plans.frame.centre
    moved = replace(padded, origin=tuple((np.asarray(padded.origin) + shift).tolist()))
    return image_to_array(resample_image(image, moved)), padded


def _draw_plane(axis: Axes, values: NDArray[Any], padded: Grid, plans: Plans, across: int) -> None:
    # The picture's columns and rows lie along two of the axes x, y and z.
    along, down = (xyz for xyz in range(3) if xyz != 2 - across)
    plane = np.take(values, values.shape[across] // 2, axis=across)
    axis.imshow(plane, cmap="gray", vmin=0, vmax=1, extent=(0, padded.extent[along], padded.extent[down], 0))
    step = (
        plugin_of(plans.network).coarsest_stride(plans.network)
        * plans.configuration(plans.default_configuration).downsampling
    )
    for draw_line, xyz in ((axis.axvline, along), (axis.axhline, down)):
        for line in range(step, padded.size[xyz], step):
            draw_line(line * padded.spacing[xyz], color="cyan", linewidth=0.4)
    left, top = np.subtract(plans.frame.origin, padded.origin).round(6)[[along, down]]
    right, bottom = np.add((left, top), plans.frame.extent[[along, down]])
    axis.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color="gold", linewidth=1.5)
    if across != 0:
        # In coronal and sagittal planes the head is up.
        axis.invert_yaxis()
    axis.set(xticks=[], yticks=[])
