"""ITK transforms from files."""

import pytest
import SimpleITK as sitk

from llmreg.errors import BadTransform, MissingFile
from llmreg.images.transforms import read_linear_transform, read_transform


@pytest.mark.parametrize("ending", [".tfm", ".txt", ".h5", ".mat"])
def test_a_transform_maps_points_as_before(ending, tmp_path):
    path = tmp_path / f"a{ending}"
    transform = sitk.Euler3DTransform((5.0, 3.0, -4.0), 0.1, -0.05, 0.2, (0.5, -0.5, 0.3))
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(transform.GetMatrix())
    affine.SetTranslation((1.0, 2.0, 3.0))
    sitk.WriteTransform(affine, str(path))
    point = (7.0, -8.0, 9.0)
    for read in (read_transform, read_linear_transform):
        assert read(path).TransformPoint(point) == pytest.approx(affine.TransformPoint(point))


def test_what_is_no_transform_is_named(tmp_path):
    with pytest.raises(MissingFile):
        read_transform(tmp_path / "gone.tfm")
    (tmp_path / "text.tfm").write_text("no transform")
    sitk.WriteTransform(sitk.Euler2DTransform(), str(tmp_path / "flat.tfm"))
    for name in ("text.tfm", "flat.tfm"):
        with pytest.raises(BadTransform) as refusal:
            read_transform(tmp_path / name)
        assert refusal.value.path == tmp_path / name


def test_a_transform_that_bends_is_not_linear(tmp_path):
    sitk.WriteTransform(sitk.BSplineTransform(3, 3), str(tmp_path / "a.tfm"))
    assert not read_transform(tmp_path / "a.tfm").IsLinear()
    with pytest.raises(BadTransform, match="linear"):
        read_linear_transform(tmp_path / "a.tfm")
