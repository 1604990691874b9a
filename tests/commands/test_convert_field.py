"""llmreg_convert_field as a user types it; the formats are tested in tests/images/test_fields.py."""

from __future__ import annotations

import numpy as np
import pytest
from random_fields import random_field

from llmreg.commands import convert_field
from llmreg.geometry.grid import Grid, array_to_image
from llmreg.images.fields import read_field, write_field
from llmreg.images.formats import FIELD_FORMATS
from llmreg.images.image_files import write_image

MOVING = Grid((8, 9, 7), (2.0, 2.0, 2.0), (0.0, -20.0, 0.0))


@pytest.fixture
def folder(tmp_path, oblique, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        write_field(random_field(oblique, number, 1.0), tmp_path / f"disp_{number}.nii.gz")
    write_image(array_to_image(np.zeros(oblique.shape, np.float32), oblique), tmp_path / "fixed.nii.gz")
    write_image(array_to_image(np.zeros(MOVING.shape, np.float32), MOVING), tmp_path / "moving.nii.gz")
    return tmp_path


def test_the_command_offers_what_there_is():
    assert set(FIELD_FORMATS.names) >= {"itk", "learn2reg", "nifti-ras", "npz"}


@pytest.mark.parametrize("other", ["learn2reg", "nifti-ras", "npz"])
def test_several_fields_go_there_and_back(folder, other, capsys):
    images = ["--fixed", "fixed.nii.gz", "--moving", "moving.nii.gz"]
    typed = f"-i disp_1.nii.gz disp_2.nii.gz -o {other} --to {other}"
    assert convert_field.main([*typed.split(), *images]) == 0
    written = capsys.readouterr().out.split()
    assert written == [f"{other}/disp_{k}{FIELD_FORMATS.get(other).endings[0]}" for k in (1, 2)]
    for number, path in enumerate(written, start=1):
        typed = f"-i {path} -o back_{number}.mha --to itk"
        assert convert_field.main([*typed.split(), *images]) == 0
        expected = read_field(folder / f"disp_{number}.nii.gz").vectors
        np.testing.assert_allclose(read_field(folder / f"back_{number}.mha").vectors, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("-i disp_1.nii.gz disp_2.nii.gz -o out.npz --to npz", "name a folder"),
        ("-i disp_1.nii.gz disp_1.nii.gz -o out --to npz", "given twice"),
        ("-i disp_1.nii.gz moving/disp_1.nii.gz -o out --to npz", "Two results would be called out/disp_1.npz"),
        ("-i disp_1.nii.gz -o out.nii.gz --to npz", "end it in .npz"),
        ("-i disp_1.nii.gz -o fixed.nii.gz --to nifti-ras", "--overwrite"),
        ("-i disp_1.nii.gz -o disp_1.nii.gz --to nifti-ras --overwrite", "would be replaced by the result"),
        ("-i nothing.nii.gz -o out.npz --to npz", "nothing.nii.gz does not exist"),
        ("-i fixed.nii.gz -o out.npz --to npz", "instead of a 3-D field"),
        ("-i disp_1.nii.gz -o out.npz --from learn2reg --to npz --fixed fixed.nii.gz", "read it as itk"),
        ("-i disp_1.nii.gz -o out.npz --from learn2reg --to npz", "--fixed"),
    ],
)
def test_mistakes_are_one_sentence(folder, capsys, typed, sentence):
    before = sorted(folder.rglob("*"))
    assert convert_field.main(typed.split()) == 2
    sentences = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1
    assert sentence in sentences[0]
    assert sorted(folder.rglob("*")) == before
