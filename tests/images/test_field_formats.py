"""The registry of field formats."""

import numpy as np
import pytest

from llmreg.errors import BadTransform
from llmreg.geometry.field import DisplacementField
from llmreg.images import fields
from llmreg.images.field_formats import FIELD_FORMATS, FieldFormat, field_endings
from llmreg.images.formats import DEFAULT_ENDING
from llmreg.registry import Registry


def test_every_ending_of_a_field_is_listed_once():
    assert field_endings()[0] == DEFAULT_ENDING
    assert len(set(field_endings())) == len(field_endings())
    assert set(field_endings()) == {ending for format in FIELD_FORMATS.parts.values() for ending in format.endings}


@pytest.mark.parametrize("name", FIELD_FORMATS.names)
def test_files_are_named_by_the_preferred_ending(name):
    format = FIELD_FORMATS.get(name)
    assert format.ending == format.endings[0]
    assert format.ending == (".npz" if name == "npz" else DEFAULT_ENDING)


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
