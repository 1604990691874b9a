"""Landmark files."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from random_fields import grids

from llmreg.errors import BadTable, UserError
from llmreg.images.landmarks import read_landmarks, write_landmarks

TABLES = {
    "plain": "1.5,2,3\n4,5,6.25\n",
    "header": "name,x,y,z,comment\napex,1.5,2,3,sure\nbase,4,5,6.25,\n",
    "order": "Z;label;Y;X\n3;1;2;1.5\n6.25;2;5;4\n",
    "names": "apex\t1.5\t2\t3\nbase\t4\t5\t6.25\n",
    "ants": "x,y,z,t,label\n1.5,2,3,0,1\n4,5,6.25,0,2\n",
    "comments": '# by hand\n\n"x","y","z","note"\n1.5,2,3,"one, or two"\n4,5,6.25,\n',
}


EXPECTED = np.array([[1.5, 2, 3], [4, 5, 6.25]])


@pytest.mark.parametrize("name", TABLES)
def test_tables_keep_what_is_not_a_coordinate(name, tmp_path):
    source = tmp_path / "in.csv"
    source.write_text(TABLES[name])
    table, points = read_landmarks(source)
    np.testing.assert_array_equal(points, EXPECTED)
    write_landmarks(table, points + 100, tmp_path / "out.csv")
    rewritten, moved_points = read_landmarks(tmp_path / "out.csv")
    np.testing.assert_allclose(moved_points, EXPECTED + 100)
    for before, after in zip(table.rows, rewritten.rows, strict=True):
        other_columns = [k for k in range(len(before)) if k not in table.columns]
        assert [before[k] for k in other_columns] == [after[k] for k in other_columns]
    assert (rewritten.header, rewritten.preamble, rewritten.delimiter) == (
        table.header,
        table.preamble,
        table.delimiter,
    )
    # A table that is written with its own coordinates keeps its values.
    write_landmarks(table, points, tmp_path / "same.csv")
    values = [line.split(table.delimiter) for line in (tmp_path / "same.csv").read_text().splitlines()]
    assert values[-1][table.columns[0]] == "4.000000"


@settings(max_examples=20)
@given(grid=grids(), seed=st.integers(0, 1000))
def test_conventions_name_the_same_places(grid, seed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("points")
    index = np.random.default_rng(seed).uniform(0, 10, (5, 3))
    image = sitk.Image(grid.size, sitk.sitkUInt8)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    lps = np.array([image.TransformContinuousIndexToPhysicalPoint(i) for i in index.tolist()])
    written = {"voxel": index, "lps": lps, "ras": lps * (-1, -1, 1)}
    for convention, values in written.items():
        np.savetxt(folder / "in.csv", values, delimiter=",", fmt="%.9f")
        table, points = read_landmarks(folder / "in.csv", convention, grid)
        np.testing.assert_allclose(points, lps, atol=1e-6)
        write_landmarks(table, points, folder / "out.csv", grid)
        np.testing.assert_allclose(np.loadtxt(folder / "out.csv", delimiter=","), values, atol=2e-6)


SLICER = """# Markups fiducial file version = 4.11
# CoordinateSystem = {}
# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID
vtkMRMLMarkupsFiducialNode_0,{},0,0,0,1,1,1,0,F-1,,vtkMRMLScalarVolumeNode1
"""


@pytest.mark.parametrize(("system", "sign"), [("LPS", 1), ("1", 1), ("RAS", -1), ("0", -1)])
def test_slicer_fiducials_are_read_in_their_own_system(system, sign, tmp_path):
    source = tmp_path / "F.fcsv"
    source.write_text(SLICER.format(system, f"{sign * 10},{sign * 20},30"))
    table, points = read_landmarks(source, "voxel")
    np.testing.assert_array_equal(points, [[10, 20, 30]])
    write_landmarks(table, points + 1, tmp_path / "out.fcsv")
    expected = SLICER.format(system, ",".join(f"{v:.6f}" for v in (sign * 11, sign * 21, 31)))
    assert (tmp_path / "out.fcsv").read_text() == expected


@pytest.mark.parametrize(("system", "sign"), [("LPS", 1), ("RAS", -1)])
def test_slicer_markups_keep_everything_else(system, sign, tmp_path):
    control = [
        {"id": "1", "label": "apex", "position": [sign * 10.0, sign * 20.0, 30.0], "positionStatus": "defined"},
        {"id": "2", "label": "later", "position": [0.0, 0.0, 0.0], "positionStatus": "undefined"},
        {"id": "3", "label": "base", "position": [sign * 1.0, sign * 2.0, 3.0]},
    ]
    content = {
        "@schema": "x",
        "markups": [{"type": "Fiducial", "coordinateSystem": system, "controlPoints": control}],
    }
    (tmp_path / "F.mrk.json").write_text(json.dumps(content))
    table, points = read_landmarks(tmp_path / "F.mrk.json")
    np.testing.assert_array_equal(points, [[10, 20, 30], [1, 2, 3]])
    write_landmarks(table, points * 2, tmp_path / "out.mrk.json")
    control[0]["position"] = [sign * 20.0, sign * 40.0, 60.0]
    control[2]["position"] = [sign * 2.0, sign * 4.0, 6.0]
    assert json.loads((tmp_path / "out.mrk.json").read_text()) == content


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", "", "lists no point"),
        ("a.csv", "x,y,z\n", "lists no point"),
        ("a.csv", "x,y\n1,2\n", "columns x, y and z"),
        ("a.csv", "1 2 3\n4 5 6\n", "between commas"),
        ("a.csv", "x,y,z,x\n1,2,3,4\n", "columns x, y and z"),
        ("a.csv", "1,2,3,4\n", "4 columns of numbers"),
        ("a.csv", "1,2,3\n4,5\n", "2 cells in point 2"),
        ("a.csv", "1,2,3\n4,five,6\n", "y = 'five' in point 2"),
        ("a.csv", "x,y,z\n1,2,nan\n", "z = 'nan' in point 1"),
        ("a.csv", b"\xff\xfe\x00", "read as text"),
        ("a.csv", None, "does not exist"),
        ("a.fcsv", "# CoordinateSystem = IJK\n# columns = id,x,y,z\na,1,2,3\n", "coordinate system 'IJK'"),
        ("a.fcsv", "# columns = id,x,y,z\n", "lists no point"),
        ("a.mrk.json", "{", "not valid JSON"),
        ("a.mrk.json", "[]", "no markups file"),
        ("a.mrk.json", '{"markups": [{"controlPoints": [{"position": [1, 2]}]}]}', "no markups file"),
        ("a.mrk.json", '{"markups": [{"controlPoints": []}]}', "lists no point"),
    ],
)
def test_bad_points_are_refused(name, content, sentence, tmp_path):
    if isinstance(content, str):
        (tmp_path / name).write_text(content)
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence) as refusal:
        read_landmarks(tmp_path / name)
    assert str(tmp_path / name) in str(refusal.value)


def test_voxels_need_an_image(tmp_path, oblique):
    (tmp_path / "a.csv").write_text("1,2,3\n")
    with pytest.raises(BadTable) as refusal:
        read_landmarks(tmp_path / "a.csv", "voxel")
    assert refusal.value.path == tmp_path / "a.csv"
    table, _ = read_landmarks(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="2 points"):
        write_landmarks(table, np.zeros((2, 3)), tmp_path / "b.csv")


def test_a_name_may_begin_with_a_hash(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("# from the clinic\nlabel,x,y,z\n#1,1,2,3\n#2,4,5,6\n")
    _, points = read_landmarks(path)
    np.testing.assert_array_equal(points, [[1, 2, 3], [4, 5, 6]])
