"""Fields as plain arrays, as NumPy and the Learn2Reg challenge read them."""

import gzip
import struct

import numpy as np
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from random_fields import grids, random_field
from scipy.ndimage import map_coordinates
from smooth import smooth_noise

from llmreg.geometry.arrays import array_to_image, image_to_array
from llmreg.geometry.field import DisplacementField
from llmreg.images.fields import write_field


def nifti_header(path):
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix == ".gz" else content


@settings(max_examples=10)
@given(fixed=grids(), moving=grids(), seed=st.integers(0, 1000))
def test_learn2reg_looks_where_itk_looks(fixed, moving, seed, tmp_path_factory):
    """The challenge's evaluation against sitk.Resample, with images on different grids."""
    # The centres of the images meet, so that something is seen.
    shift = (moving.centre - fixed.centre).astype(np.float32)
    field = DisplacementField(random_field(fixed, seed, voxels=2.0).vectors + shift, fixed)
    folder = tmp_path_factory.mktemp("learn2reg")
    write_field(field, folder / "disp.nii.gz", "learn2reg", moving)
    write_field(field, folder / "disp.npz", "learn2reg", moving)
    write_field(field, folder / "itk.nii.gz", "itk")
    values = smooth_noise(np.random.default_rng(seed), moving.shape, 1.0).astype(np.float32)
    image = array_to_image(values, moving)
    itk = sitk.DisplacementFieldTransform(sitk.ReadImage(str(folder / "itk.nii.gz"), sitk.sitkVectorFloat64))
    reference = array_to_image(np.zeros(fixed.shape, np.uint8), fixed)
    seen_by_itk = image_to_array(sitk.Resample(image, reference, itk, sitk.sitkLinear, 9.0, sitk.sitkFloat64))
    with np.load(folder / "disp.npz") as stored:
        arrays = [stored[key] for key in stored.files]
    content = nifti_header(folder / "disp.nii.gz")
    assert struct.unpack("<8h", content[40:56])[:5] == (4, *fixed.size, 3)
    start = int(struct.unpack("<f", content[108:112])[0])
    # The bytes, so that no reader's axis order comes between: NIfTI stores the first axis fastest.
    arrays.append(np.frombuffer(content, "<f4", offset=start).reshape((*fixed.size, 3), order="F"))
    for array in arrays:
        index = np.moveaxis(array.astype(float), -1, 0) + np.indices(fixed.size)
        warped = map_coordinates(values.T.astype(float), index, order=1)
        inside = np.all([(i > 0.01) & (i < n - 1.01) for i, n in zip(index, moving.size, strict=True)], axis=0)
        assert inside.any()
        np.testing.assert_allclose(warped[inside], seen_by_itk.T[inside], atol=2e-3)


def test_numpy_users_find_documented_keys(oblique, tmp_path):
    field = random_field(oblique, 8, 1.0)
    write_field(field, tmp_path / "a.npz", "npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as stored:
        assert sorted(stored.files) == ["direction", "origin", "size", "spacing", "vectors"]
        index = np.array([3, 4, 5])
        start = np.reshape(stored["direction"], (3, 3)) @ (stored["spacing"] * index) + stored["origin"]
        end = start + stored["vectors"][5, 4, 3]
        assert stored["vectors"].dtype == np.float32
        assert tuple(stored["size"]) == oblique.size
    np.testing.assert_allclose(field.to_transform().TransformPoint(start.tolist()), end, atol=1e-4)
