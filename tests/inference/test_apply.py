"""What llmreg_apply writes against SimpleITK's own resampling and point transforms."""

import logging
import re
from glob import glob
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from random_fields import random_field
from smooth import smooth_noise

from llmreg.commands import apply as apply_command
from llmreg.commands import convert_field
from llmreg.errors import BadArgument, MissingFile, UnclearField, UserError, WouldOverwrite, WouldReplaceInput
from llmreg.geometry.field import DisplacementField, invert_field
from llmreg.geometry.grid import Grid, array_to_image, image_to_array
from llmreg.images.fields import write_field
from llmreg.images.image_files import read_image, write_image
from llmreg.inference.apply import ApplyInputs, ApplyOptions, apply, read_chain

DOCUMENTATION = Path(__file__).parents[2] / "documentation"
NUMPY = "import numpy as np\nimport torch\n"
MOVING = Grid.from_centre((20, 18, 16), (0.8, 1.2, 2.0), (1.0, -14.0, -8.0))


def turn() -> sitk.Euler3DTransform:
    return sitk.Euler3DTransform((0.0, -20.0, -10.0), 0.05, -0.05, 0.1, (1.5, -0.5, 0.3))


@pytest.fixture
def fixed_grid(oblique):
    return oblique


@pytest.fixture
def folder(tmp_path, fixed_grid):
    """A field from fixed to moving, an affine transform, images, labels and points."""
    rng = np.random.default_rng(0)
    write_field(random_field(fixed_grid, 1, 1.0), tmp_path / "field.nii.gz")
    sitk.WriteTransform(turn(), str(tmp_path / "turn.tfm"))
    for name, grid in (("fixed", fixed_grid), ("moving", MOVING)):
        write_image(
            array_to_image((smooth_noise(rng, grid.shape, 1.0) * 900).astype(np.int16), grid),
            tmp_path / f"{name}.nii.gz",
        )
    labels = np.argmax([smooth_noise(rng, MOVING.shape, 2.0) for _ in range(4)], axis=0).astype(np.uint8)
    write_image(array_to_image(labels, MOVING), tmp_path / "labels.nii.gz")
    points = fixed_grid.index_to_physical(rng.uniform(3, 8, (6, 3)))
    np.savetxt(tmp_path / "points.csv", points, delimiter=",", fmt="%.9f")
    return tmp_path


def transform_of(folder, *names) -> sitk.Transform:
    """Join transforms so that the first applies first; ITK's composite applies first what was added last."""
    composite = sitk.CompositeTransform(3)
    for name in reversed(names):
        path = str(folder / name)
        if name.endswith(".tfm"):
            composite.AddTransform(sitk.ReadTransform(path))
        else:
            composite.AddTransform(sitk.DisplacementFieldTransform(sitk.ReadImage(path, sitk.sitkVectorFloat64)))
    return composite


CHAINS = [("field.nii.gz",), ("field.nii.gz", "turn.tfm"), ("turn.tfm", "field.nii.gz"), ("turn.tfm",)]


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize(("interpolation", "method"), [("linear", sitk.sitkLinear), ("bspline", sitk.sitkBSpline)])
def test_images_are_resampled_once_through_the_chain(folder, chain, interpolation, method):
    options = ApplyOptions(interpolation, like=folder / "fixed.nii.gz", default=-5.0)
    (resampled_path,) = apply(
        [folder / name for name in chain], ApplyInputs((folder / "moving.nii.gz",)), folder / "out.nii.gz", options
    )
    moving = sitk.ReadImage(str(folder / "moving.nii.gz"))
    reference = sitk.ReadImage(str(folder / "fixed.nii.gz"))
    expected = sitk.Resample(moving, reference, transform_of(folder, *chain), method, -5.0, sitk.sitkFloat64)
    resampled = sitk.ReadImage(str(resampled_path))
    assert resampled.GetPixelID() == moving.GetPixelID()
    assert Grid.from_image(resampled).same_as(Grid.from_image(reference))
    values = sitk.GetArrayFromImage(moving)
    bounded = sitk.GetArrayFromImage(expected)
    bounded = np.where(bounded == -5.0, bounded, bounded.clip(values.min(), values.max()))
    assert 0.1 < (bounded != -5.0).mean() < 1
    differences = np.abs(sitk.GetArrayFromImage(resampled) - bounded)
    assert np.quantile(differences, 0.995) <= 0.51


def test_labels_are_nearest_or_by_weight(folder, fixed_grid):
    chain = [folder / "field.nii.gz", folder / "turn.tfm"]
    inputs = ApplyInputs(labels=(folder / "labels.nii.gz",))
    (nearest_path,) = apply(chain, inputs, folder / "nearest", ApplyOptions())
    (weighed_path,) = apply(chain, inputs, folder / "weighed", ApplyOptions("label"))
    moving, reference = sitk.ReadImage(str(folder / "labels.nii.gz")), sitk.ReadImage(str(folder / "fixed.nii.gz"))
    transform = transform_of(folder, "field.nii.gz", "turn.tfm")
    expected = sitk.GetArrayFromImage(sitk.Resample(moving, reference, transform, sitk.sitkNearestNeighbor, 0))
    assert (image_to_array(read_image(nearest_path)) == expected).mean() > 0.99
    maps = [
        sitk.GetArrayFromImage(sitk.Resample(sitk.Cast(moving == k, sitk.sitkFloat64), reference, transform))
        for k in range(4)
    ]
    clear = np.diff(np.sort(maps, axis=0)[-2:], axis=0)[0] > 1e-3
    weighed_labels = image_to_array(read_image(weighed_path))
    assert (weighed_labels[clear] == np.argmax(maps, axis=0)[clear]).mean() > 0.998
    # An image that is interpolated as labels gives the same.
    (image_path,) = apply(chain, ApplyInputs((folder / "labels.nii.gz",)), folder / "other", ApplyOptions("label"))
    np.testing.assert_array_equal(image_to_array(read_image(image_path)), weighed_labels)


@pytest.mark.parametrize("chain", CHAINS)
def test_points_go_along_and_come_back(folder, chain):
    paths = [folder / name for name in chain]
    (moved_path,) = apply(paths, ApplyInputs(landmarks=(folder / "points.csv",)), folder / "there.csv", ApplyOptions())
    points = np.loadtxt(folder / "points.csv", delimiter=",")
    transform = transform_of(folder, *chain)
    expected = [transform.TransformPoint(point) for point in points.tolist()]
    np.testing.assert_allclose(np.loadtxt(moved_path, delimiter=","), expected, atol=1e-3)
    (returned_path,) = apply(
        paths, ApplyInputs(landmarks=(moved_path,)), folder / "back.csv", ApplyOptions(inverse=True)
    )
    np.testing.assert_allclose(np.loadtxt(returned_path, delimiter=","), points, atol=0.05)


def test_a_field_and_its_inverse_in_a_file_bring_points_back(folder, fixed_grid):
    field = random_field(fixed_grid, 1, 1.0)
    write_field(invert_field(field), folder / "inverse.nii.gz")
    (moved_path,) = apply(
        [folder / "field.nii.gz"], ApplyInputs(landmarks=(folder / "points.csv",)), folder / "there.csv", ApplyOptions()
    )
    (returned_path,) = apply(
        [folder / "inverse.nii.gz"], ApplyInputs(landmarks=(moved_path,)), folder / "back.csv", ApplyOptions()
    )
    offsets = np.loadtxt(returned_path, delimiter=",") - np.loadtxt(folder / "points.csv", delimiter=",")
    assert np.linalg.norm(offsets, axis=1).max() < 0.1


def test_voxels_are_those_of_the_image_on_either_side(folder, fixed_grid):
    chain = [folder / "field.nii.gz", folder / "turn.tfm"]
    points = np.loadtxt(folder / "points.csv", delimiter=",")
    np.savetxt(folder / "voxels.csv", fixed_grid.physical_to_index(points), delimiter=",", fmt="%.9f")
    options = ApplyOptions(convention="voxel", moving=folder / "moving.nii.gz")
    (moved_path,) = apply(chain, ApplyInputs(landmarks=(folder / "voxels.csv",)), folder / "there.csv", options)
    moving = sitk.ReadImage(str(folder / "moving.nii.gz"))
    transform = transform_of(folder, "field.nii.gz", "turn.tfm")
    expected = [moving.TransformPhysicalPointToContinuousIndex(transform.TransformPoint(p)) for p in points.tolist()]
    np.testing.assert_allclose(np.loadtxt(moved_path, delimiter=","), expected, atol=1e-3)
    inverse_options = ApplyOptions(convention="voxel", moving=folder / "moving.nii.gz", inverse=True)
    (returned_path,) = apply(chain, ApplyInputs(landmarks=(moved_path,)), folder / "back.csv", inverse_options)
    np.testing.assert_allclose(
        np.loadtxt(returned_path, delimiter=","), np.loadtxt(folder / "voxels.csv", delimiter=","), atol=0.05
    )


def test_fixed_images_go_onto_the_moving_one(folder, fixed_grid):
    """An image of the fixed grid is warped by the inverse of the chain."""
    chain = [folder / "field.nii.gz", folder / "turn.tfm"]
    smooth = array_to_image(
        smooth_noise(np.random.default_rng(1), fixed_grid.shape, 3.0).astype(np.float32), fixed_grid
    )
    write_image(smooth, folder / "smooth.nii.gz")
    options = ApplyOptions(like=folder / "moving.nii.gz", inverse=True, default=np.nan)
    (warped_path,) = apply(chain, ApplyInputs((folder / "smooth.nii.gz",)), folder / "warped.mha", options)
    warped = sitk.ReadImage(str(warped_path))
    assert Grid.from_image(warped).same_as(MOVING)
    # Each voxel of the moving grid shows what lies at the point that the chain leads there.
    transform = transform_of(folder, "field.nii.gz", "turn.tfm")
    points = fixed_grid.index_to_physical(np.random.default_rng(2).uniform(3, 7, (200, 3)))
    checked = 0
    for point in points.tolist():
        index = warped.TransformPhysicalPointToContinuousIndex(transform.TransformPoint(point))
        if all(1 < i < n - 2 for i, n in zip(index, MOVING.size, strict=True)):
            value = warped.EvaluateAtContinuousIndex(index)
            expected = smooth.EvaluateAtContinuousIndex(smooth.TransformPhysicalPointToContinuousIndex(point))
            assert value == pytest.approx(expected, abs=0.06)
            checked += 1
    assert checked > 50


def test_composites_and_other_formats_are_chained(folder, fixed_grid):
    composite = transform_of(folder, "field.nii.gz", "turn.tfm")
    sitk.WriteTransform(composite, str(folder / "both.h5"))
    write_field(random_field(fixed_grid, 1, 1.0), folder / "field.npz", "npz")
    write_field(random_field(fixed_grid, 1, 1.0), folder / "ras.nii.gz", "nifti-ras")
    inputs = ApplyInputs((folder / "moving.nii.gz",))
    results = []
    for number, chain in enumerate((["both.h5"], ["field.npz", "turn.tfm"], ["ras.nii.gz", "turn.tfm"])):
        (path,) = apply([folder / name for name in chain], inputs, folder / f"{number}.nii.gz", ApplyOptions())
        results.append(image_to_array(read_image(path)))
    for result in results[1:]:
        np.testing.assert_array_equal(results[0], result)
    assert len(read_chain([folder / "both.h5", folder / "turn.tfm"])) == 3


def test_many_files_go_into_a_folder_by_their_names(folder):
    sitk.WriteImage(sitk.ReadImage(str(folder / "moving.nii.gz")), str(folder / "other.mhd"))
    inputs = ApplyInputs(
        (folder / "moving.nii.gz", folder / "other.mhd"), (folder / "labels.nii.gz",), (folder / "points.csv",)
    )
    output_paths = apply([folder / "field.nii.gz"], inputs, folder / "out", ApplyOptions())
    names = ["moving.nii.gz", "other.nii.gz", "labels.nii.gz", "points.csv"]
    assert [path.name for path in output_paths] == names
    assert sorted(path.name for path in (folder / "out").iterdir()) == sorted(names)


def test_mistakes_are_warned_of(folder, fixed_grid, caplog):
    caplog.set_level(logging.WARNING)
    chain = [folder / "field.nii.gz"]
    apply(chain, ApplyInputs((folder / "labels.nii.gz",)), folder / "1.nii.gz", ApplyOptions())
    assert "looks like a label map" in caplog.text
    caplog.clear()
    apply(chain, ApplyInputs((folder / "moving.nii.gz",), (folder / "labels.nii.gz",)), folder / "2", ApplyOptions())
    apply(chain, ApplyInputs(landmarks=(folder / "points.csv",)), folder / "2.csv", ApplyOptions())
    assert not caplog.text
    (folder / "far.csv").write_text("0,0,0\n900,0,0\n")
    apply(chain, ApplyInputs(landmarks=(folder / "far.csv",)), folder / "3.csv", ApplyOptions())
    assert "2 of 2 landmarks lie outside the field's grid" in caplog.text
    caplog.clear()
    apply(chain, ApplyInputs(landmarks=(folder / "far.csv",)), folder / "4.csv", ApplyOptions(inverse=True))
    assert "2 of 2 landmarks" in caplog.text
    caplog.clear()
    far = Grid(MOVING.size, MOVING.spacing, (900.0, 0.0, 0.0))
    write_image(array_to_image(np.arange(5760, dtype=np.float32).reshape(far.shape), far), folder / "far.nii.gz")
    apply(chain, ApplyInputs((folder / "far.nii.gz",)), folder / "5.nii.gz", ApplyOptions())
    assert str(folder / "far.nii.gz") in caplog.text


def inputs(folder, **kinds):
    return ApplyInputs(**{kind: tuple(folder / name for name in names) for kind, names in kinds.items()})


IMAGE = {"images": ["moving.nii.gz"]}
POINTS = {"landmarks": ["points.csv"]}
TWO_IMAGES = {"images": ["moving.nii.gz", "fixed.nii.gz"]}
LABELS = {"labels": ["labels.nii.gz"]}
# The chain, the inputs, the output, the options, and the class of the error with attributes that it must have.
REFUSED = [
    (["field.nii.gz"], {}, "out", {}, BadArgument, {"argument": "inputs"}),
    (["nothing.tfm"], IMAGE, "out", {}, MissingFile, {"path": "nothing.tfm"}),
    (["points.csv"], IMAGE, "out", {}, UserError, {}),
    (["moving.nii.gz"], IMAGE, "out", {}, UserError, {}),
    (["learn2reg.npz"], IMAGE, "out", {}, UnclearField, {"path": "learn2reg.npz"}),
    (["flat.tfm"], IMAGE, "out", {}, UserError, {}),
    (["turn.tfm"], IMAGE, "out", {}, BadArgument, {"argument": "like"}),
    (["turn.tfm", "field.nii.gz"], IMAGE, "out", {}, BadArgument, {"argument": "like"}),
    (["field.nii.gz"], IMAGE, "out", {"inverse": True}, BadArgument, {"argument": "like"}),
    (["spline.tfm"], POINTS, "out", {"inverse": True}, BadArgument, {"argument": "inverse"}),
    (["field.nii.gz"], {"images": ["nothing.nii.gz"]}, "out", {}, MissingFile, {"path": "nothing.nii.gz"}),
    (
        ["field.nii.gz"],
        {"images": ["moving.nii.gz", "fixed.nii.gz"]},
        "out.nii.gz",
        {},
        BadArgument,
        {"argument": "output"},
    ),
    (["field.nii.gz"], {"images": ["moving.nii.gz"] * 2}, "out", {}, UserError, {}),
    (["field.nii.gz"], {"images": ["moving.nii.gz", "moving.mhd"]}, "out", {}, UserError, {}),
    (["field.nii.gz"], IMAGE, "out.mnc", {}, BadArgument, {"argument": "output"}),
    (["field.nii.gz"], IMAGE, "out.csv", {}, BadArgument, {"argument": "output"}),
    (["field.nii.gz"], POINTS, "out.nii.gz", {}, BadArgument, {"argument": "output"}),
    (["field.nii.gz"], IMAGE, "fixed.nii.gz", {}, WouldOverwrite, {"path": "fixed.nii.gz"}),
    (["field.nii.gz"], IMAGE, "moving.nii.gz", {"overwrite": True}, WouldReplaceInput, {"path": "moving.nii.gz"}),
    (["field.nii.gz"], IMAGE, "field.nii.gz", {"overwrite": True}, WouldReplaceInput, {"path": "field.nii.gz"}),
    (["field.nii.gz"], LABELS, "out", {"interpolation": "linear"}, BadArgument, {"argument": "interpolation"}),
    (["field.nii.gz"], IMAGE, "out", {"default": -1e6}, BadArgument, {"argument": "default"}),
    (["field.nii.gz"], IMAGE, "out", {"default": 0.5}, BadArgument, {"argument": "default"}),
    (["field.nii.gz"], IMAGE, "out", {"default": float("nan")}, BadArgument, {"argument": "default"}),
    (["field.nii.gz"], POINTS, "out", {"convention": "voxel"}, BadArgument, {"argument": "moving"}),
    (["turn.tfm"], POINTS, "out", {"convention": "voxel"}, BadArgument, {"argument": "fixed"}),
    (["turn.tfm"], POINTS, "out", {"convention": "voxel", "inverse": True}, BadArgument, {"argument": "moving"}),
]


@pytest.mark.parametrize(("chain", "kinds", "output", "options", "kind", "attributes"), REFUSED)
def test_refusals_are_one_sentence_and_write_nothing(
    folder, fixed_grid, chain, kinds, output, options, kind, attributes
):
    sitk.WriteTransform(sitk.Euler2DTransform(), str(folder / "flat.tfm"))
    sitk.WriteTransform(sitk.BSplineTransform(3, 3), str(folder / "spline.tfm"))
    write_field(random_field(fixed_grid, 1, 1.0), folder / "learn2reg.npz", "learn2reg")
    sitk.WriteImage(sitk.ReadImage(str(folder / "moving.nii.gz")), str(folder / "moving.mhd"))
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(kind) as refusal:
        apply([folder / name for name in chain], inputs(folder, **kinds), folder / output, ApplyOptions(**options))
    assert "\n" not in str(refusal.value)
    for name, value in attributes.items():
        attribute = getattr(refusal.value, name)
        assert (attribute.name if isinstance(attribute, Path) else attribute) == value
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_identity_keeps_images_of_all_types(folder, fixed_grid):
    write_field(DisplacementField(np.zeros((*MOVING.shape, 3), np.float32), MOVING), folder / "identity.nii.gz")
    for number, kind in enumerate(
        (sitk.sitkInt16, sitk.sitkInt32, sitk.sitkFloat32, sitk.sitkFloat64, sitk.sitkUInt16)
    ):
        image_path = folder / f"in{number}.nii.gz"
        source = sitk.Cast(sitk.Abs(sitk.ReadImage(str(folder / "moving.nii.gz"))), kind)
        write_image(source, image_path)
        for method in ("linear", "bspline", "nearest"):
            (warped_path,) = apply(
                [folder / "identity.nii.gz"],
                ApplyInputs((image_path,)),
                folder / f"{number}{method}.nii.gz",
                ApplyOptions(method),
            )
            warped = read_image(warped_path)
            assert warped.GetPixelID() == kind
            np.testing.assert_allclose(image_to_array(warped), image_to_array(source), atol=1e-3)


def test_ants_makes_the_same_of_the_same_files(folder, fixed_grid):
    """Images and points go through the chain in the same order; points are in LPS, fields in either format."""
    ants = pytest.importorskip("ants")
    rng = np.random.default_rng(3)
    write_image(
        array_to_image(smooth_noise(rng, MOVING.shape, 1.5).astype(np.float32), MOVING), folder / "smooth.nii.gz"
    )
    write_field(random_field(fixed_grid, 1, 1.0), folder / "ras.nii.gz", "nifti-ras")
    sitk.WriteTransform(turn(), str(folder / "turn.mat"))
    reference, moving = (ants.image_read(str(folder / f"{name}.nii.gz")) for name in ("fixed", "smooth"))
    points = np.loadtxt(folder / "points.csv", delimiter=",")
    for name in ("field.nii.gz", "ras.nii.gz"):
        chain = [str(folder / name), str(folder / "turn.mat")]
        paths = [folder / name, folder / "turn.mat"]
        by_ants = ants.apply_transforms(reference, moving, chain, "linear").numpy()
        (warped_path,) = apply(
            paths, ApplyInputs((folder / "smooth.nii.gz",)), folder / f"by_us_{name}", ApplyOptions()
        )
        warped = image_to_array(read_image(warped_path)).transpose(2, 1, 0)
        assert np.abs(by_ants).max() > 0.3
        # A voxel at the very edge of an image may lie inside or outside.
        assert (np.abs(warped - by_ants) < 2e-3).mean() > 0.998
        (moved_path,) = apply(
            paths, ApplyInputs(landmarks=(folder / "points.csv",)), folder / f"{name}.csv", ApplyOptions()
        )
        table = pd.DataFrame(points, columns=["x", "y", "z"])
        expected_points = ants.apply_transforms_to_points(3, table, chain)
        np.testing.assert_allclose(np.loadtxt(moved_path, delimiter=","), expected_points[["x", "y", "z"]], atol=1e-3)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCUMENTATION / page).read_text(), re.DOTALL)


def test_what_the_documentation_says_runs(folder, fixed_grid, monkeypatch):
    monkeypatch.chdir(folder)
    for name, source in (("A", "fixed"), ("B", "moving"), ("B_pet", "moving"), ("B_seg", "labels"), ("C", "moving")):
        (folder / f"{name}.nii.gz").write_bytes((folder / f"{source}.nii.gz").read_bytes())
    (folder / "disp_A_B.nii.gz").write_bytes((folder / "field.nii.gz").read_bytes())
    (folder / "B_to_C.tfm").write_bytes((folder / "turn.tfm").read_bytes())
    for name in ("A", "B", "landmarks_of_A"):
        (folder / f"{name}.csv").write_bytes((folder / "points.csv").read_bytes())
    (folder / "out").mkdir()
    (folder / "out" / "disp_A_B.nii.gz").write_bytes((folder / "field.nii.gz").read_bytes())
    write_field(random_field(fixed_grid, 1, 1.0), folder / "disp_0001_0002.npz", "learn2reg")
    page = (DOCUMENTATION / "applying-fields.md").read_text()
    commands = set(re.findall(r"llmreg_apply -t [^`|\n]*|llmreg_convert_field -i [^`|\n]*", page))
    assert len(commands) >= 10
    mains = {"llmreg_apply": apply_command.main, "llmreg_convert_field": convert_field.main}
    for line in sorted(commands):
        words = [argument for word in line.split() for argument in (sorted(glob(word)) if "*" in word else [word])]
        assert mains[words[0]]([*words[1:], "--overwrite"]) == 0, line
    (of_npz,) = (block for block in blocks("deformation-fields.md", "python") if "allow_pickle" in block)
    for code in (*blocks("applying-fields.md", "python"), NUMPY + of_npz):
        names: dict[str, object] = {}
        exec(code, names)
    np.testing.assert_allclose(names["flow"][0].numpy(), random_field(fixed_grid, 1, 1.0).to_flow(), atol=1e-4)


def test_files_are_named_by_text_as_well(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (path,) = apply("field.nii.gz", ApplyInputs("moving.nii.gz"), "warped.nii.gz")
    assert path == Path("warped.nii.gz")
    options = ApplyOptions(like="fixed.nii.gz", fixed="fixed.nii.gz", moving="moving.nii.gz", convention="voxel")
    inputs = ApplyInputs(["moving.nii.gz"], landmarks=["points.csv"])
    same_path, points_path = apply(["field.nii.gz"], inputs, "out", options)
    assert points_path == Path("out/points.csv")
    np.testing.assert_array_equal(image_to_array(read_image(same_path)), image_to_array(read_image(path)))
