"""The report on plans says what was decided, and loads nothing from elsewhere."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from markupsafe import escape
from matplotlib.image import imread
from toy_dataset import MODALITIES, prepare

from llmreg.networks.network_registry import plugin_of
from llmreg.plans.plans import Plans
from llmreg.preprocessing.fingerprint import Fingerprint
from llmreg.preprocessing.plan_report import draw_frames, draw_histograms, write_report


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Fingerprint, Plans]:
    home = tmp_path_factory.mktemp("report")
    dataset, fingerprint, plans = prepare(home)
    path = write_report(home / "report.html", dataset, fingerprint, plans)
    return path.read_text(encoding="utf-8"), fingerprint, plans


def rows_of(page: str) -> list[list[str]]:
    return [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]


def test_every_decision_and_configuration_is_a_row(report) -> None:
    page, _, plans = report
    rows = rows_of(page)
    for decision, reason in plans.reasons.items():
        assert [decision, str(escape(reason))] in rows
    for name, planned in plans.configurations.items():
        (row,) = [row for row in rows if row and row[0].split()[0] == name and len(row) == 7]
        assert ("default" in row[0]) == (name == plans.default_configuration)
        assert row[4:] == [str(planned.token_length), str(planned.recompute), str(planned.memory_gb)]


def test_facts_are_those_of_the_fingerprint(report) -> None:
    page, fingerprint, _ = report
    facts = {row[0]: row[1] for row in rows_of(page) if len(row) == 2}
    assert facts["annotated"].startswith("100 %")
    dice = [100 * pair.dice for pair in fingerprint.pairs]
    (said,) = (text for title, text in facts.items() if title.startswith("Dice"))
    assert f"{sum(dice) / len(dice):.1f} %" in said
    assert f"{min(dice):.1f} to {max(dice):.1f}, {len(dice)} pairs" in said
    smallest = min(fingerprint.structure_voxels, key=fingerprint.structure_voxels.__getitem__)
    assert facts["smallest structure"].startswith(fingerprint.labels[smallest])


def test_names_from_the_dataset_are_escaped(report) -> None:
    page, _, _ = report
    assert str(escape(MODALITIES["0"])) in page
    assert "<3T>" not in page


def test_pictures_are_in_the_page_and_nothing_is_loaded_from_elsewhere(report) -> None:
    page, _, _ = report
    pictures = re.findall(r'<img [^>]*src="data:image/png;base64,([^"]*)"', page)
    assert len(pictures) == 2
    for picture in pictures:
        pixels = imread(io.BytesIO(base64.b64decode(picture, validate=True)), format="png")
        assert min(pixels.shape[:2]) > 100
        assert pixels[..., :3].std() > 0.01
    assert all(link.startswith("data:") for link in re.findall(r'(?:src|href|data|action)="([^"]*)"', page))
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|<link", re.sub(r"base64,[^\"]*", "", page))


def test_a_dataset_without_labels_has_no_figures_of_them(tmp_path) -> None:
    dataset, fingerprint, plans = prepare(tmp_path, labelled=False)
    page = write_report(tmp_path / "report.html", dataset, fingerprint, plans).read_text(encoding="utf-8")
    facts = {row[0]: row[1] for row in rows_of(page) if len(row) == 2}
    assert facts["annotated"].startswith("0 %")
    assert not [title for title in facts if title.startswith(("Dice", "smallest structure"))]


@pytest.fixture(scope="module")
def prepared_dataset(tmp_path_factory: pytest.TempPathFactory):
    return prepare(tmp_path_factory.mktemp("figures"))


def test_histograms_show_each_modality_with_its_window(prepared_dataset) -> None:
    dataset, _, plans = prepared_dataset
    axes = draw_histograms(dataset, plans).axes
    assert len(axes) == len(plans.normalization) == 2
    window = plans.normalization[1]
    assert axes[1].get_xlabel() == "HU"
    clipped = sorted(edge for patch in axes[1].patches for edge in (patch.get_x(), patch.get_x() + patch.get_width()))
    # Three cases are drawn, each with a clipped range on both sides of the window.
    assert {round(edge) for edge in clipped} >= {round(window.lower), round(window.upper)}
    labels = axes[1].get_legend_handles_labels()[1]
    assert {label.split(", ")[1] for label in labels} == {"foreground", "structures"}
    assert {label.split(",")[0] for label in labels} == {f"Toy_{subject:04d}_0001" for subject in (1, 2, 3)}


def test_frames_show_both_modalities_with_the_networks_coarsest_grid(prepared_dataset) -> None:
    dataset, _, plans = prepared_dataset
    axes = draw_frames(dataset, plans).axes
    assert len(axes) == 6
    assert axes[0].get_title().startswith(plans.prealignment.reference_case)
    configuration = plans.configuration(plans.default_configuration)
    step = plugin_of(plans.network).coarsest_stride(plans.network) * configuration.downsampling
    columns, rows, outline = axes[1].lines[0], axes[1].lines[-2], axes[1].lines[-1]
    # A coronal plane: columns run along x, rows along z.
    np.testing.assert_allclose(columns.get_xdata(), step * plans.spacing[0])
    last = (configuration.padded_size[2] - 1) // step * step
    np.testing.assert_allclose(rows.get_ydata(), last * plans.spacing[2])
    assert np.ptp(outline.get_xdata()) == pytest.approx(plans.frame.extent[0])
    assert np.ptp(outline.get_ydata()) == pytest.approx(plans.frame.extent[2])
