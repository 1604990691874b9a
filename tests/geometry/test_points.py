"""Landmark files, and points through transforms as SimpleITK takes them."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from random_fields import grids, random_field

from llmreg.errors import UserError
from llmreg.geometry import field as fields
from llmreg.geometry.field import DisplacementField
from llmreg.geometry.points import inverse_transform_points, read_points, transform_points, write_points

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
    table, points = read_points(source)
    np.testing.assert_array_equal(points, EXPECTED)
    write_points(table, points + 100, tmp_path / "out.csv")
    found, moved = read_points(tmp_path / "out.csv")
    np.testing.assert_allclose(moved, EXPECTED + 100)
    for before, after in zip(table.rows, found.rows, strict=True):
        others = [k for k in range(len(before)) if k not in table.columns]
        assert [before[k] for k in others] == [after[k] for k in others]
    assert (found.header, found.preamble, found.delimiter) == (table.header, table.preamble, table.delimiter)
    # Written again with its own coordinates it says the same.
    write_points(table, points, tmp_path / "same.csv")
    values = [line.split(table.delimiter) for line in (tmp_path / "same.csv").read_text().splitlines()]
    assert values[-1][table.columns[0]] == "4.000000"


@settings(max_examples=20, deadline=None)
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
        table, points = read_points(folder / "in.csv", convention, grid)
        np.testing.assert_allclose(points, lps, atol=1e-6)
        write_points(table, points, folder / "out.csv", grid)
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
    table, points = read_points(source, "voxel")
    np.testing.assert_array_equal(points, [[10, 20, 30]])
    write_points(table, points + 1, tmp_path / "out.fcsv")
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
    table, points = read_points(tmp_path / "F.mrk.json")
    np.testing.assert_array_equal(points, [[10, 20, 30], [1, 2, 3]])
    write_points(table, points * 2, tmp_path / "out.mrk.json")
    control[0]["position"] = [sign * 20.0, sign * 40.0, 60.0]
    control[2]["position"] = [sign * 2.0, sign * 4.0, 6.0]
    assert json.loads((tmp_path / "out.mrk.json").read_text()) == content


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", "", "lists no point"),
        ("a.csv", "x,y,z\n", "lists no point"),
        ("a.csv", "x,y\n1,2\n", "no columns x, y and z"),
        ("a.csv", "1 2 3\n4 5 6\n", "no columns x, y and z between commas"),
        ("a.csv", "x,y,z,x\n1,2,3,4\n", "no columns x, y and z"),
        ("a.csv", "1,2,3,4\n", "4 columns of numbers"),
        ("a.csv", "1,2,3\n4,5\n", "point 2 has 2 cells"),
        ("a.csv", "1,2,3\n4,five,6\n", "point 2 has y = 'five'"),
        ("a.csv", "x,y,z\n1,2,nan\n", "point 1 has z = 'nan'"),
        ("a.csv", b"\xff\xfe\x00", "cannot be read as text"),
        ("a.csv", None, "do not exist"),
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
        read_points(tmp_path / name)
    assert str(tmp_path / name) in str(refusal.value)


def test_voxels_need_an_image(tmp_path, oblique):
    (tmp_path / "a.csv").write_text("1,2,3\n")
    with pytest.raises(UserError, match="of which image"):
        read_points(tmp_path / "a.csv", "voxel")
    table, _ = read_points(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="2 points"):
        write_points(table, np.zeros((2, 3)), tmp_path / "b.csv")


def affine() -> sitk.AffineTransform:
    transform = sitk.AffineTransform(3)
    transform.SetMatrix((0.9, -0.4, 0.1, 0.35, 1.1, 0.0, -0.1, 0.2, 1.3))
    transform.SetCenter((10.0, -5.0, 30.0))
    transform.SetTranslation((120.0, -80.0, 4.0))
    return transform


@settings(max_examples=15, deadline=None)
@given(grid=grids(), seed=st.integers(0, 1000))
def test_points_go_where_itk_takes_them(grid, seed):
    rng = np.random.default_rng(seed)
    field = random_field(grid, seed, 2.0)
    # Some lie outside, where ITK leaves them; none at the very border of the outermost voxels.
    index = rng.uniform(-3, np.array(grid.size) + 2, (200, 3))
    border = np.minimum(np.abs(index + 0.5), np.abs(index - np.array(grid.size) + 0.5)).min(axis=1) < 1e-3
    points = grid.index_to_physical(index[~border])
    spline = sitk.BSplineTransform(3, 3)
    spline.SetParameters(rng.normal(size=len(spline.GetParameters())).tolist())
    for transform in (field, affine(), sitk.Euler3DTransform((0, 0, 0), 0.1, 0.2, 0.3), spline):
        by_itk = transform.to_transform() if isinstance(transform, DisplacementField) else transform
        expected = [by_itk.TransformPoint(point) for point in points.tolist()]
        np.testing.assert_allclose(transform_points(points, transform), expected, atol=1e-4)
    assert transform_points(np.empty((0, 3)), field).shape == (0, 3)


@settings(max_examples=15, deadline=None)
@given(grid=grids(), seed=st.integers(0, 1000))
def test_points_come_back_through_a_field_with_a_large_affine_part(grid, seed):
    deformation = random_field(grid, seed, 1.5)
    placed = affine()
    whole = DisplacementField.from_transform(fields.chain_transforms(deformation.to_transform(), placed), grid)
    index = np.random.default_rng(seed).uniform(0, np.array(grid.size) - 1, (300, 3))
    points = grid.index_to_physical(index)
    moved = transform_points(points, whole)
    back = inverse_transform_points(moved, whole)
    assert np.linalg.norm(back - points, axis=1).max() < 0.1
    # Both ways, also where no inverse on the fixed grid could be looked up: the moving points lie elsewhere.
    np.testing.assert_allclose(transform_points(back, whole), moved, atol=4e-3 * max(grid.spacing))
    assert not grid.contains(moved).all()


def test_an_affine_part_goes_on_outside(oblique):
    field = DisplacementField.from_transform(affine(), oblique)
    far = oblique.corners() * 3
    np.testing.assert_allclose(inverse_transform_points(transform_points(far, affine()), field), far, atol=1e-2)


def test_point_inverses_agree_with_the_inverse_field(oblique):
    field = random_field(oblique, 3, 1.0)
    inner = oblique.index_to_physical(np.random.default_rng(0).uniform(3, 6, (50, 3)))
    expected = transform_points(inner, fields.inverse(field, tolerance=1e-5))
    # The inverse field is exact at its voxels only.
    np.testing.assert_allclose(inverse_transform_points(inner, field), expected, atol=0.2)


def test_strong_expansion_does_not_oscillate(oblique):
    x = np.linspace(-1, 1, oblique.size[0], dtype=np.float32)
    flow = np.zeros((3, *oblique.shape), np.float32)
    flow[0] = np.where(np.abs(x) < 0.4, 4 * x, 4 * 0.4 * np.sign(x)) * 4
    field = DisplacementField.from_flow(flow, oblique)
    points = oblique.index_to_physical(np.random.default_rng(0).uniform(2, 8, (100, 3)))
    there = transform_points(inverse_transform_points(points, field), field)
    np.testing.assert_allclose(there, points, atol=4e-3)


def test_one_slice_has_an_inverse(oblique):
    flat = oblique.padded((0, 0, 0), (0, 0, 1 - oblique.size[2]))
    field = DisplacementField(np.full((*flat.shape, 3), 5.0, np.float32), flat)
    points = flat.index_to_physical([[3.0, 4.0, 0.0]])
    np.testing.assert_allclose(inverse_transform_points(points + 5, field), points, atol=1e-3)


def test_many_points_are_looked_up_as_few_are(oblique, monkeypatch):
    field = random_field(oblique, 4, 1.5)
    points = oblique.index_to_physical(np.random.default_rng(0).uniform(-2, np.array(oblique.size) + 1, (500, 3)))
    few = transform_points(points, field), inverse_transform_points(points, field)
    monkeypatch.setattr("llmreg.geometry.points._MANY", 0)
    many = transform_points(points, field), inverse_transform_points(points, field)
    np.testing.assert_allclose(many[0], few[0], atol=1e-4)
    # To a thousandth of a voxel.
    np.testing.assert_allclose(many[1], few[1], atol=5e-3)


def test_a_name_may_begin_with_a_hash(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("# from the clinic\nlabel,x,y,z\n#1,1,2,3\n#2,4,5,6\n")
    _, found = read_points(path)
    np.testing.assert_array_equal(found, [[1, 2, 3], [4, 5, 6]])
