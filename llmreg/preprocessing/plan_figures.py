"""Figures for the report on plans: intensities with their windows, and the common frame over cases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from llmreg.data.dataset import Case, Dataset
from llmreg.data.modalities import is_ct
from llmreg.geometry.arrays import image_to_array, orient_to_lps
from llmreg.geometry.grid import Grid
from llmreg.geometry.resampling import resample_image
from llmreg.images.image_files import read_image
from llmreg.networks.registry import plugin_of
from llmreg.plans.plan_settings import Normalization
from llmreg.plans.plans import Plans
from llmreg.preprocessing.fingerprint import CaseFingerprint, Fingerprint
from llmreg.preprocessing.foreground import find_foreground
from llmreg.preprocessing.normalization import normalize_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CASES_A_HISTOGRAM = 4
_BINS = 120
# Planes and the axis of an array (z, y, x) that they are perpendicular to.
_PLANES = (("axial", 0), ("coronal", 1), ("sagittal", 2))


def draw_histograms(dataset: Dataset, plans: Plans) -> Figure:
    """Draw intensities of some cases of each modality; the clipped ranges are grey."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3 * len(plans.normalization)), layout="constrained")
    axes = figure.subplots(len(plans.normalization), 1, squeeze=False)[:, 0]
    for axis, (modality, plan) in zip(axes, plans.normalization.items(), strict=True):
        cases = [case for case in dataset.of_modality(modality) if case.name not in dataset.held_out]
        cases = cases or list(dataset.of_modality(modality))
        for number, case in enumerate(cases[:: max(1, len(cases) // CASES_A_HISTOGRAM)][:CASES_A_HISTOGRAM]):
            _draw_histogram(axis, case, plan, f"C{number}")
        axis.set_title(f"{plan.modality}: {plan.scheme} {plan.lower:g} to {plan.upper:g}")
        axis.set_xlabel("HU" if plan.scheme == "window" and is_ct(plan.modality) else "intensity as stored")
        axis.set_yticks([])
        axis.legend(fontsize=8)
    return figure


def _draw_histogram(axis: Axes, case: Case, plan: Normalization, colour: str) -> None:
    image = orient_to_lps(read_image(case.image))
    foreground = find_foreground(image, ct=is_ct(plan.modality)).intensities
    window = (plan.lower, plan.upper)
    if plan.scheme == "percentiles":
        window = tuple(np.percentile(foreground, window))
    span = window[1] - window[0]
    limits = (window[0] - 0.4 * span, window[1] + 0.4 * span)
    for values, style, name in ((foreground, "-", "foreground"), (_read_annotated(image, case), "--", "structures")):
        if len(values):
            counts, edges = np.histogram(values, _BINS, limits)
            axis.plot(edges[:-1], counts / counts.max().clip(1), style, color=colour, label=f"{case.name}, {name}")
    for low, high in ((limits[0], window[0]), (window[1], limits[1])):
        axis.axvspan(low, high, color="grey", alpha=0.12, linewidth=0)


def _read_annotated(image: sitk.Image, case: Case) -> NDArray[Any]:
    """The image's intensities at labelled voxels, 1-D."""
    if case.label is None:
        return np.zeros(0)
    return image_to_array(image)[image_to_array(orient_to_lps(read_image(case.label))) > 0]


def draw_frames(dataset: Dataset, fingerprint: Fingerprint, plans: Plans) -> Figure:
    """Draw the middle slices of a case of each modality with the frame and the network's coarsest grid over them."""
    from matplotlib.figure import Figure

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
    coarsest = plugin_of(plans.network).coarsest_stride(plans.network)
    step = coarsest * plans.configuration(plans.default_configuration).downsampling
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
    axis.set_xticks([])
    axis.set_yticks([])
