"""llmreg_apply as a user types it; what it computes is tested in tests/inference/test_apply.py."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from random_fields import random_field
from smooth import smooth_noise

from llmreg.commands import apply
from llmreg.geometry.grid import array_to_image
from llmreg.images.fields import write_field
from llmreg.images.image_files import write_image


@pytest.fixture
def folder(tmp_path, oblique, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    write_field(random_field(oblique, 1, 1.0), tmp_path / "field.nii.gz")
    sitk.WriteTransform(sitk.TranslationTransform(3, (1.0, 0.0, 0.0)), "shift.tfm")
    write_image(
        array_to_image(smooth_noise(rng, oblique.shape, 1.0).astype(np.float32), oblique), tmp_path / "image.nii.gz"
    )
    write_image(array_to_image(np.ones(oblique.shape, np.uint8), oblique), tmp_path / "labels.nii.gz")
    point = oblique.index_to_physical((6, 5, 4))
    (tmp_path / "points.csv").write_text("name,x,y,z\napex,{},{},{}\n".format(*point))
    return tmp_path


def test_everything_at_once(folder, capsys):
    typed = "-t field.nii.gz -t shift.tfm -i image.nii.gz --labels labels.nii.gz --landmarks points.csv -o out"
    assert apply.main(typed.split()) == 0
    assert capsys.readouterr().out.split() == ["out/image.nii.gz", "out/labels.nii.gz", "out/points.csv"]
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["image.nii.gz", "labels.nii.gz", "points.csv"]
    assert (folder / "out" / "points.csv").read_text().startswith("name,x,y,z\napex,")


def test_the_transforms_named_first_come_first(folder):
    for typed in ("-t field.nii.gz shift.tfm", "-t field.nii.gz -t shift.tfm"):
        assert apply.main([*typed.split(), *["--landmarks", "points.csv", "-o", "out.csv", "--overwrite"]]) == 0
        point = [float(cell) for cell in (folder / "points.csv").read_text().split()[1].split(",")[1:]]
        field = sitk.DisplacementFieldTransform(sitk.ReadImage("field.nii.gz", sitk.sitkVectorFloat64))
        expected = np.add(field.TransformPoint(point), (1, 0, 0))
        moved = [float(cell) for cell in (folder / "out.csv").read_text().split()[1].split(",")[1:]]
        np.testing.assert_allclose(moved, expected, atol=1e-4)


def test_conventions_and_the_way_back(folder, oblique):
    (folder / "ras.csv").write_text(
        "name,x,y,z\napex,{},{},{}\n".format(*oblique.index_to_physical((6, 5, 4)) * (-1, -1, 1))
    )
    (folder / "voxel.csv").write_text("name,x,y,z\napex,6,5,4\n")
    options = "-t field.nii.gz shift.tfm --fixed image.nii.gz --moving labels.nii.gz"
    for convention in ("ras", "voxel"):
        typed = f"{options} --landmarks {convention}.csv --convention {convention} -o there.csv"
        assert apply.main([*typed.split(), "--overwrite"]) == 0
        typed = f"{options} --landmarks there.csv --convention {convention} --inverse -o back.csv"
        assert apply.main([*typed.split(), "--overwrite"]) == 0
        rows = [
            (folder / name).read_text().split()[1].split(",") for name in ("there.csv", "back.csv", f"{convention}.csv")
        ]
        moved, back, start = (np.array(row[1:], float) for row in rows)
        np.testing.assert_allclose(back, start, atol=0.02)
        assert np.linalg.norm(moved - start) > 0.2


@pytest.mark.parametrize(
    ("typed", "option"),
    [
        ("-t field.nii.gz -o out", "--labels"),
        ("-t shift.tfm -i image.nii.gz -o out.nii.gz", "--like"),
        ("-t field.nii.gz -i image.nii.gz -o labels.nii.gz", "--overwrite"),
        ("-t field.nii.gz --landmarks points.csv --convention voxel -o out.csv", "--moving"),
        ("-t field.nii.gz -i image.nii.gz --inverse -o out.nii.gz", "--like"),
    ],
)
def test_mistakes_are_one_sentence(folder, capsys, typed, option):
    before = sorted(folder.rglob("*"))
    assert apply.main(typed.split()) == 2
    sentences = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1
    assert option in sentences[0]
    assert sorted(folder.rglob("*")) == before


def test_results_agree_with_what_simpleitk_makes_of_the_written_field(folder):
    assert apply.main(["-t", "field.nii.gz", "-i", "image.nii.gz", "-o", "out.nii.gz"]) == 0
    field = sitk.DisplacementFieldTransform(sitk.ReadImage("field.nii.gz", sitk.sitkVectorFloat64))
    image = sitk.ReadImage("image.nii.gz")
    expected = sitk.GetArrayFromImage(sitk.Resample(image, image, field))
    np.testing.assert_allclose(sitk.GetArrayFromImage(sitk.ReadImage("out.nii.gz")), expected, atol=1e-5)
