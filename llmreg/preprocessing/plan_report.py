"""``plan_report.html``: the planner's decisions with pictures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from markupsafe import Markup

from llmreg import pages
from llmreg.data.dataset import Dataset
from llmreg.files import write_text
from llmreg.plans.plans import Plans
from llmreg.preprocessing.fingerprint import Fingerprint
from llmreg.preprocessing.plan_figures import draw_frames, draw_histograms

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT_FILE = "plan_report.html"


def write_report(path: Path, dataset: Dataset, fingerprint: Fingerprint, plans: Plans) -> Path:
    """Write the report of plans: decisions and reasons, intensities and windows, the frame over both modalities."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("llmreg.preprocessing"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("plan_report.html").render(
        style=Markup(pages.style_sheet()),
        plans=plans,
        frame=f"{_shape(plans.size)} voxels of {_shape(plans.spacing)} mm",
        configurations=_describe_configurations(plans),
        facts=_describe_dataset(fingerprint),
        histograms=_embed(draw_histograms(dataset, plans)),
        grids=_embed(draw_frames(dataset, fingerprint, plans)),
    )
    write_text(path, page)
    return path


def _describe_configurations(plans: Plans) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for name, planned in plans.configurations.items():
        default = " (default)" if name == plans.default_configuration else ""
        shapes = [_shape(shape) for shape in (planned.padded_size, planned.network_shape, planned.token_grid)]
        rows.append((name + default, *shapes, planned.token_length, planned.recompute, planned.memory_gb))
    return rows


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
