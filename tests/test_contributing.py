"""The recipes of CONTRIBUTING.md, followed word by word: files are written, commands are run, in one empty folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from llmreg.images.fields import read_field

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"
# A block of code, with the name of its file where it has one.
BLOCK = re.compile(
    r"(?:^`(?P<file>[^`\n]+)`:\n\n)?^```(?P<language>bash|python|toml)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


def recipes() -> Iterator[re.Match[str]]:
    text = PAGE.read_text(encoding="utf-8")
    yield from BLOCK.finditer(text, text.index("## Recipes"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder after all recipes: files of the page as it names them, and one shell for all its commands."""
    folder = tmp_path_factory.mktemp("contributor")
    script = ["set -euo pipefail"]
    for block in recipes():
        if block["file"]:
            path = folder / block["file"]
            # Files are written when their turn comes, so that each recipe works without those after it.
            script.append(f"mkdir -p {path.parent}\ncat > {path} <<'END OF FILE'\n{block['code']}END OF FILE")
        else:
            assert block["language"] == "bash"
            script.append(block["code"])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("llmreg_")}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
    return folder


def test_an_outside_network_is_trained_and_predicts(folder: Path) -> None:
    model = folder / "home" / "results" / "Dataset999_Demo" / "toy__quick__half"
    assert json.loads((model / "plans.json").read_text())["network"]["name"] == "toy"
    assert (model / "fold_0" / "checkpoint_final.safetensors").exists()
    predictions = json.loads((folder / "out" / "predict.json").read_text())
    assert len(predictions["pairs"]) == 2
    assert all((folder / "out" / pair["field"]).exists() for pair in predictions["pairs"])
    assert (folder / "out" / "metrics.csv").exists()


def test_an_outside_loss_term_is_minimised(folder: Path) -> None:
    model = folder / "home" / "results" / "Dataset999_Demo" / "toy__small_steps__half"
    terms = json.loads((model / "plans.json").read_text())["loss"]["terms"]
    assert terms["magnitude"]["weight"] == 0.1
    (epoch,) = (model / "fold_0" / "training_log.jsonl").read_text().splitlines()
    assert json.loads(epoch)["loss_magnitude"] > 0


def test_an_outside_image_format_is_written(folder: Path) -> None:
    with np.load(folder / "warped.image.npz") as image:
        assert image["voxels"].ndim == 3
        assert np.ptp(image["voxels"]) > 0


def test_an_outside_field_format_is_written_and_read(folder: Path) -> None:
    field, expected = (
        read_field(folder / name) for name in ("field.nii.gz", "out/disp_Demo_0007_0000_Demo_0008_0001.nii.gz")
    )
    assert field.grid.same_as(expected.grid)
    np.testing.assert_array_equal(field.vectors, expected.vectors)
    assert sitk.ReadTransform(str(folder / "field.h5")).GetName() == "DisplacementFieldTransform"


def test_an_outside_prealignment_places_cases(folder: Path) -> None:
    stages = defaultdict(list)
    for path in (folder / "home" / "preprocessed" / "Dataset999_Demo").glob("volumes_*/Demo_*.json"):
        stages[path.parent].append(json.loads(path.read_text())["transform"]["stage"])
    assert ["mass"] * 12 in stages.values()


def test_an_outside_converter_writes_a_dataset(folder: Path) -> None:
    dataset = folder / "home" / "raw" / "Dataset500_Copy"
    assert len(list((dataset / "imagesTr").iterdir())) == 4
    assert set(json.loads((dataset / "dataset.json").read_text())["training"]) == {"0", "1"}


def test_the_picture_of_the_floors_has_every_room() -> None:
    """Rooms that the page draws are those of the package."""
    text = PAGE.read_text(encoding="utf-8")
    picture = re.search(r"holds this picture as data\.\n\n```\n(.*?)```", text, re.DOTALL)
    assert picture is not None
    words = set(picture[1].split())
    package = PAGE.parent / "llmreg"
    rooms = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__"} <= words
