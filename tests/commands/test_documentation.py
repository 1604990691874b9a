"""The Python examples of the documentation run, and mean what they say."""

from __future__ import annotations

import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from smooth import smooth_noise
from tiny_study import NAME, model

import llmreg
from llmreg.geometry.field import DisplacementField
from llmreg.geometry.grid import Grid, array_to_image, image_to_array
from llmreg.geometry.resampling import resample_image
from llmreg.images.fields import write_field
from llmreg.images.image_files import write_image

DOCUMENTATION = Path(__file__).parents[2] / "documentation"


def examples(document: str, first: str = "") -> list[str]:
    """The Python blocks of a page, from the heading ``first`` on."""
    text = (DOCUMENTATION / document).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text[text.index(first) :], re.DOTALL)


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(code, "documentation", "exec"), names)
    return names


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pair on two grids, a field between them, and what the warped image should be."""
    rng = np.random.default_rng(0)
    fixed = Grid((24, 20, 16), (2.0, 2.0, 3.0), (-20.0, -18.0, -20.0), (0, -1, 0, 1, 0, 0, 0, 0, 1))
    moving = Grid.from_centre((30, 26, 22), (1.8, 2.2, 2.5), fixed.centre)
    image = array_to_image((100 * smooth_noise(rng, moving.shape, 2.0)).astype(np.float32), moving)
    vectors = np.stack([4 * smooth_noise(rng, fixed.shape, 3.0) for _ in range(3)], axis=-1).astype(np.float32)
    field = DisplacementField(vectors, fixed)
    write_image(image, tmp_path / "moving.nii.gz")
    write_image(array_to_image(np.zeros(fixed.shape, np.float32), fixed), tmp_path / "fixed.nii.gz")
    write_image(resample_image(image, fixed), tmp_path / "moving_on_fixed.nii.gz")
    write_field(field, tmp_path / "disp_A_B.nii.gz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def warp_with_itk(moving: str) -> np.ndarray:
    """Warp an image through the stored field with ITK."""
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage("disp_A_B.nii.gz", sitk.sitkVectorFloat64))
    warped = sitk.Resample(sitk.ReadImage(moving), sitk.ReadImage("fixed.nii.gz"), transform)
    return image_to_array(warped)


@pytest.mark.parametrize(
    ("library", "moving"),
    [
        ("SimpleITK", "moving.nii.gz"),
        ("ants", "moving.nii.gz"),
        ("monai", "moving_on_fixed.nii.gz"),
        ("torch", "moving.nii.gz"),
    ],
)
def test_other_libraries_warp_alike(folder: Path, library: str, moving: str) -> None:
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    order = ("SimpleITK", "ants", "monai", "torch")
    warped = run(examples("deformation-fields.md", "## Using it elsewhere")[order.index(library)])["warped"]
    values = image_to_array(warped) if isinstance(warped, sitk.Image) else np.asarray(warped.numpy())
    reference = warp_with_itk(moving)
    if library in ("ants", "monai"):
        values = np.transpose(values)
    # Close to the border, libraries blend with the outside differently.
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage("disp_A_B.nii.gz", sitk.sitkVectorFloat64))
    inner = array_to_image(
        np.ones(image_to_array(sitk.ReadImage(moving)).shape, np.float32), Grid.from_image(sitk.ReadImage(moving))
    )
    inner = sitk.BinaryErode(sitk.Cast(inner, sitk.sitkUInt8), (2, 2, 2), sitk.sitkBall, 0, 1, False)
    inside = (
        image_to_array(sitk.Resample(inner, sitk.ReadImage("fixed.nii.gz"), transform, sitk.sitkNearestNeighbor)) > 0
    )
    assert inside.mean() > 0.2
    np.testing.assert_allclose(values[inside], reference[inside], atol=1e-3 * np.ptp(reference))


def test_the_other_examples_on_fields_run(folder: Path) -> None:
    from llmreg.images.fields import read_field, write_field

    write_field(read_field(folder / "disp_A_B.nii.gz"), folder / "disp_A_B.npz", "npz")
    blocks = examples("deformation-fields.md", "## Other conventions")
    assert blocks
    for block in blocks:
        run("import numpy as np\nimport torch\n" + block)


def test_the_python_interface_is_as_documented(environment: Path, tmp_path: Path, monkeypatch) -> None:
    source, labels = (environment / "raw" / NAME / folder for folder in ("imagesTs", "labelsTs"))
    images = sorted(source.glob("*.nii.gz"))
    for name, path in (("fixed", images[0]), ("moving", images[1]), ("moving_labels", labels / images[1].name)):
        (tmp_path / f"{name}.nii.gz").symlink_to(path)
    (tmp_path / "model").symlink_to(model(environment))
    monkeypatch.chdir(tmp_path)
    (block,) = examples("predicting.md")
    registration = run(block)["registration"]
    assert registration.warped.GetSize() == sitk.ReadImage("fixed.nii.gz").GetSize()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "disp_a_pair.nii.gz",
        "inverse_a_pair.nii.gz",
        "warped_a_pair.nii.gz",
    ]


def test_the_page_on_python_runs_from_planning_to_scores(environment: Path, tmp_path: Path, monkeypatch) -> None:
    for name in ("raw", "preprocessed"):
        shutil.copytree(environment / name, tmp_path / name)
    monkeypatch.setenv("llmreg_home", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    names = run("\n".join(examples("python.md")))
    assert names["trained"].folder == tmp_path / "results" / NAME / "voxelmorph__short__half"
    assert names["trained"].validation.metrics["dice"].num_pairs > 0
    assert names["warped"] == tmp_path.relative_to(tmp_path) / "out" / "labels.nii.gz"
    assert sorted(path.name for path in (tmp_path / "out").glob("*_a_pair.nii.gz")) == [
        "disp_a_pair.nii.gz",
        "warped_a_pair.nii.gz",
    ]


def test_the_page_on_python_names_what_the_package_names() -> None:
    text = (DOCUMENTATION / "python.md").read_text(encoding="utf-8")
    for name in set(re.findall(r"llmreg\.([A-Za-z]\w*)", text)) - {"errors"}:
        assert name in llmreg.__all__, name
