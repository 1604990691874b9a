"""The registries of image and field formats, also with a package that is installed beside llmreg."""

import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from llmreg.errors import BadImage, BadTransform
from llmreg.geometry.field import DisplacementField
from llmreg.geometry.grid import array_to_image, image_to_array
from llmreg.images import fields, formats
from llmreg.images.formats import (
    DEFAULT_ENDING,
    FIELD_FORMATS,
    FieldFormat,
    field_endings,
    find_image_format,
    image_endings,
    strip_ending,
)
from llmreg.images.image_files import read_image, write_image
from llmreg.registry import Registry

# A format of another package: NumPy's arrays, of unit spacing, of which a file with a NaN is damaged.
PLUGIN = """
import numpy as np
import SimpleITK as sitk

from llmreg.errors import BadImage
from llmreg.images.formats import ImageFormat, register_image_format


def read(path):
    return sitk.GetImageFromArray(np.load(path))


def write(image, path):
    with path.open("wb") as stream:
        np.save(stream, sitk.GetArrayFromImage(image))


def check(path):
    if np.isnan(np.load(path)).any():
        raise BadImage(path, "holds NaN")


register_image_format(ImageFormat("toy", (".npy", ".toy.npy"), read, write, check, lambda image, grid: "is a toy."))
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A registry of its own, in which an installed package has added a format."""
    site = tmp_path / "site"
    info = site / "toy_format-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "toy_format.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-format\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[llmreg.image_formats]\ntoy = toy_format\n")
    registry = Registry("image format", "llmreg.image_formats")
    for name, format in formats.IMAGE_FORMATS.parts.items():
        registry.register(name, format)
    monkeypatch.setattr(formats, "IMAGE_FORMATS", registry)
    monkeypatch.syspath_prepend(str(site))
    yield registry
    sys.modules.pop("toy_format", None)


@pytest.mark.parametrize(
    ("name", "format", "case"),
    [
        ("a_0001_0000.nii.gz", "NIfTI", "a_0001_0000"),
        ("a.b.nii", "NIfTI", "a.b"),
        ("a.nrrd", "NRRD", "a"),
        ("a.mha", "MetaImage", "a"),
        ("a.mhd", "MetaImage header", "a"),
        ("a.tar.gz", "ITK", "a.tar"),
        ("a.NII", "ITK", "a"),
        ("nii.gz", "ITK", "nii"),
        ("a", "ITK", "a"),
    ],
)
def test_a_files_ending_says_its_format_and_its_case(name, format, case):
    assert find_image_format(Path("folder.nrrd") / name).name == format
    assert strip_ending(Path("folder.nrrd") / name) == case


def test_endings_that_are_written_can_be_read():
    assert image_endings()[0] == DEFAULT_ENDING
    assert set(image_endings(writable=True)) < set(image_endings())
    assert ".mhd" not in image_endings(writable=True)


@pytest.mark.parametrize("ending", image_endings(writable=True))
def test_every_format_keeps_voxels_and_geometry(ending, oblique, tmp_path):
    image = array_to_image(np.random.default_rng(0).normal(size=oblique.shape).astype(np.float32), oblique)
    write_image(image, tmp_path / f"a{ending}")
    stored = sitk.ReadImage(str(tmp_path / f"a{ending}"))
    np.testing.assert_array_equal(image_to_array(stored), image_to_array(image))
    np.testing.assert_allclose(stored.GetOrigin(), oblique.origin, atol=1e-4)
    np.testing.assert_allclose(stored.GetDirection(), oblique.direction, atol=1e-6)


def test_a_package_adds_a_format(plugin, tmp_path, caplog):
    assert "toy" in plugin.names
    assert image_endings()[-2:] == (".npy", ".toy.npy")
    assert strip_ending(tmp_path / "a.toy.npy") == "a"
    values = np.random.default_rng(0).normal(size=(7, 6, 5)).astype(np.float32)
    write_image(sitk.GetImageFromArray(values), tmp_path / "a.toy.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "a.toy.npy"), values)
    np.testing.assert_array_equal(image_to_array(read_image(tmp_path / "a.toy.npy")), values)
    assert f"{tmp_path / 'a.toy.npy'} is a toy." in caplog.messages
    np.save(tmp_path / "b.toy.npy", np.full((7, 6, 5), np.nan))
    with pytest.raises(BadImage, match="holds NaN"):
        read_image(tmp_path / "b.toy.npy")
    with pytest.raises(ValueError, match="already"):
        formats.register_image_format(plugin.get("toy"))


def test_every_ending_of_a_field_is_listed_once():
    assert field_endings()[0] == DEFAULT_ENDING
    assert len(set(field_endings())) == len(field_endings())
    assert set(field_endings()) == {ending for format in FIELD_FORMATS.parts.values() for ending in format.endings}


@pytest.mark.parametrize("name", FIELD_FORMATS.names)
def test_the_preferred_ending_of_a_format_comes_first(name):
    assert FIELD_FORMATS.get(name).endings[0] == (".npz" if name == "npz" else DEFAULT_ENDING)


def test_a_format_gets_the_fixed_and_the_moving_grid_in_this_order(oblique, tmp_path, monkeypatch):
    other = oblique.pad((1, 2, 3), (0, 0, 0))
    field = DisplacementField(np.zeros((*oblique.shape, 3), np.float32), oblique)
    written = []

    def read(path, fixed_grid, moving_grid):
        assert (fixed_grid, moving_grid) == (oblique, other)
        return field

    registry: Registry[FieldFormat] = Registry("field format", "tests.no_group")
    registry.register("toy", FieldFormat((".toy",), read, lambda *arguments: written.append(arguments)))
    monkeypatch.setattr(fields, "FIELD_FORMATS", registry)
    path = tmp_path / "a.toy"
    path.write_text("")
    assert fields.read_field(path, "toy", oblique, other) is field
    fields.write_field(field, path, "toy", other)
    assert written == [(field, path, other)]
    with pytest.raises(BadTransform, match=r"end it in \.toy"):
        fields.write_field(field, tmp_path / "a.nii", "toy")
