"""The whole page: what it shows of predictions, a benchmark and a model, and that a browser likes it."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tiny_predictions import EVIL, write_benchmark, write_predictions

from llmreg.errors import BadArgument, MissingFile, UnreadableFile
from llmreg.geometry.grid import Grid
from llmreg.report import stacks
from llmreg.report.content import read_source
from llmreg.report.page import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Elements without an end tag.
VOID = {"meta", "img", "source", "input", "link", "br"}


class Page(HTMLParser):
    """Elements with their attributes, visible text, and what the scripts hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open, self.scripts = "", [], []
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def data(self) -> tuple[dict, list[dict]]:
        """What the viewer is given."""
        about, *pictures = (json.loads(script) for script in self.scripts[:-1])
        return about, pictures


@pytest.fixture(scope="module", autouse=True)
def few_slices() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stacks, "MOST_SLICES", 4)
        patch.setattr(stacks, "ENOUGH_SLICES", 4)
        yield


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory, upright: Grid) -> Path:
    return write_benchmark(tmp_path_factory.mktemp("study") / "benchmark", upright, [2.5, 5.0])


@pytest.fixture(scope="module")
def benchmark_page(benchmark: Path) -> Path:
    return write_report(benchmark)


@pytest.fixture(scope="module")
def predictions(tmp_path_factory, upright: Grid) -> Path:
    return write_predictions(tmp_path_factory.mktemp("predicted") / "out", upright, [5.0], 0.5)


def parse_page(path: Path) -> Page:
    """Parse a page, which needs nothing else and reads well without eyes."""
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert EVIL not in text
    for image in page.all("img"):
        assert (image["alt"] or "").strip()
    assert not re.search(r"""(src|href|srcset)\s*=\s*["']?(https?:)?//|url\(|@import""", text)
    for attributes in page.all("img") + page.all("source"):
        assert (attributes.get("src") or attributes.get("srcset") or "").startswith("data:image/")
    assert all(head.get("scope") in ("col", "row") for head in page.all("th"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        assert (link["href"] or "#").removeprefix("#") in ids
    return page


def test_a_benchmark_shows_numbers_boxes_pairs_failures_and_slices(benchmark_page: Path) -> None:
    page = parse_page(benchmark_page)
    for said in (f"Half {EVIL}", "Whole", "Initial", "ANTs is not installed", f"no {EVIL}", "HD95 (mm)", "organ"):
        assert said in page.text
    about, pictures = page.data
    assert about["methods"] == [f"Half {EVIL}", "Whole"]
    assert about["labels"]["1"]["name"] == EVIL
    # One method leaves half of each shift, so the pair with the larger shift is the worst.
    assert [pair["id"] for pair in about["pairs"]] == ["pair 1", "pair 0"]
    assert [pair["place"] for pair in about["pairs"]] == ["the worst of 2", "the best of 2"]
    assert set(about["pairs"][0]["planes"]) == {"axial", "coronal", "sagittal"}
    for pair, layers in zip(about["pairs"], pictures, strict=True):
        for plane, slices in pair["planes"].items():
            count = len(slices["mm"])
            assert {"fixed", "moving", "fixed_contours", "moving_contours"} == set(layers["shared"][plane])
            half_layers, whole_layers = (method[plane] for method in layers["methods"])
            assert set(half_layers) == {"warped", "warped_contours", "grid", "jacobian"}
            assert set(whole_layers) == set(half_layers) | {"uncertainty"}
            assert all(len(layer) == count for layer in (*layers["shared"][plane].values(), *whole_layers.values()))
    assert about["pairs"][0]["methods"][0]["uncertainty_mm"] is None
    assert about["pairs"][0]["methods"][1]["uncertainty_mm"] == pytest.approx(5.5)


def test_a_method_whose_prediction_was_stopped_is_left_out(tmp_path: Path, upright: Grid) -> None:
    folder = write_benchmark(tmp_path / "benchmark", upright, [2.5, 5.0])
    stopped, title = next(iter(json.loads((folder / "benchmark.json").read_text())["methods"].items()))
    (folder / stopped / "fold_0" / "predict.json").unlink()
    source = read_source(folder)
    assert title not in source.by_pair
    assert title in dict(source.failed)


def test_numbers_have_initial_ones_beside_and_the_best_in_bold(benchmark_page: Path) -> None:
    text = benchmark_page.read_text(encoding="utf-8")
    rows = re.findall(r'<tr><th scope="row">(Initial|Whole|Half[^<]*)</th>(.*?)</tr>', text)
    cells = {title[:5].strip(): re.findall(r"<td>(.*?)</td>", row) for title, row in rows}
    assert "<strong>" in cells["Whole"][0]
    assert "<strong>" not in cells["Half"][0] + cells["Initi"][0]
    number = {title: float(re.search(r"[\d.]+", row[0])[0]) for title, row in cells.items()}
    assert number["Initi"] < number["Half"] < number["Whole"]


def test_pairs_beyond_the_number_asked_for_are_in_the_table_alone(benchmark: Path, tmp_path: Path) -> None:
    page = parse_page(write_report(benchmark, tmp_path / "one.html", pairs=1))
    about, pictures = page.data
    assert [pair["id"] for pair in about["pairs"]] == ["pair 1"]
    assert len(pictures) == 1
    assert "pair 0" in page.text
    assert len([button for button in page.all("button") if "data-pair" in button]) == 1


def test_the_pairs_of_predictions_are_reported_before_and_after(predictions: Path) -> None:
    page = parse_page(write_report(predictions))
    assert (predictions / "report.html").is_file()
    for said in ("Initial", "Registered", "refine 30", "Dataset999_Demo/tiny", "pair 99"):
        assert said in page.text
    (pair,) = page.data[0]["pairs"]
    (dice, *_) = pair["methods"][0]["numbers"]
    assert dice[0] == "Dice (%)"
    assert float(dice[1]) < float(dice[2])
    assert [label for label, _, _ in pair["methods"][0]["labels"]] == [1, 2]


def test_unscored_predictions_are_shown_without_numbers(predictions: Path, tmp_path: Path) -> None:
    shutil.copytree(predictions, tmp_path / "out")
    for name in ("metrics.csv", "summary.json"):
        (tmp_path / "out" / name).unlink()
    page = parse_page(write_report(tmp_path / "out"))
    assert "llmreg_evaluate" in page.text
    (pair,) = page.data[0]["pairs"]
    assert pair["place"] == ""
    assert pair["methods"][0]["labels"] == []


def test_predictions_that_all_failed_say_so(tmp_path: Path) -> None:
    failed = [{"pair_id": "a pair", "failed": "too dark"}]
    (tmp_path / "predict.json").write_text(json.dumps({"pairs": [], "failed": failed}))
    page = parse_page(write_report(tmp_path))
    assert "too dark" in page.text
    assert not page.scripts


def test_a_pair_that_cannot_be_drawn_is_listed_with_its_reason(predictions: Path, tmp_path: Path) -> None:
    shutil.copytree(predictions, tmp_path / "out")
    (tmp_path / "out" / "disp_0.nii.gz").unlink()
    page = parse_page(write_report(tmp_path / "out"))
    assert "disp_0.nii.gz" in page.text
    assert not page.scripts


def test_other_folders_are_refused(benchmark: Path, tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match=r"predict\.json.*plans\.json.*benchmark\.json"):
        write_report(tmp_path)
    with pytest.raises(MissingFile):
        write_report(tmp_path / "nowhere")
    with pytest.raises(BadArgument) as refusal:
        write_report(benchmark, predictions=benchmark / "whole" / "fold_0")
    assert refusal.value.argument == "predictions"
    (tmp_path / "benchmark.json").write_text('{"methods": 3}')
    with pytest.raises(UnreadableFile):
        write_report(tmp_path)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_chromium_shows_the_report_of_a_benchmark_without_a_complaint(benchmark_page: Path, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    process = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1366,768",
            "--virtual-time-budget=5000",
            f"--screenshot={picture}",
            "--dump-dom",
            benchmark_page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in process.stderr
    assert picture.stat().st_size > 20_000
    images = Page(process.stdout).all("img")
    shown = [image["alt"] or "" for image in images if (image["src"] or "").startswith("data:image/webp")]
    assert any("Fixed image F_0001_0000, axial slice" in alt for alt in shown)
    assert any("Warped grid of Half" in alt for alt in shown)
    assert all(shown)
