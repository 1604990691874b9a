"""Classical registration of two images by other programs, each with its own defaults for two contrasts.

The images share a grid. What is asked for is the displacement on it; how it is found is left to the method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from llmreg.geometry.field import DisplacementField
from llmreg.geometry.formats import from_learn2reg
from llmreg.geometry.grid import Grid
from llmreg.geometry.io import image_to_array, read_field, read_image

# Folds and jumps of greedy's field are its own, not those of a file that is rounded to a tenth of a voxel.
_GREEDY_PRECISION = 0


@dataclass(frozen=True)
class Classical:
    """A method.

    Attributes:
        module: what it is imported as.
        package: what pip installs it as.
        about: what it does, in a line.
        register: from the files of the fixed and the moving image, and a folder for its own files.
    """

    module: str
    package: str
    about: str
    register: Callable[[Path, Path, Path], DisplacementField]


def _ants(fixed: Path, moving: Path, work: Path) -> DisplacementField:
    """Avants et al., Symmetric diffeomorphic image registration with cross-correlation, MedIA 2008."""
    import ants

    images = [ants.image_read(str(path)) for path in (fixed, moving)]
    prefix = f"{work}/ants_"
    found = ants.registration(*images, "SyN", outprefix=prefix)
    composed = ants.apply_transforms(*images, found["fwdtransforms"], compose=prefix)
    return read_field(Path(composed))


def _greedy(fixed: Path, moving: Path, work: Path) -> DisplacementField:
    """Yushkevich et al., Fast automatic segmentation of hippocampal subfields, Alzheimer's & Dementia 2016."""
    from picsl_greedy import Greedy3D

    greedy, images = Greedy3D(), f"-i {fixed} {moving}"
    affine, warp, whole = (work / name for name in ("affine.mat", "warp.nii.gz", "whole.nii.gz"))
    greedy.execute(f"{images} -a -dof 12 -ia-identity -m NMI -n 100x50x10 -o {affine}")
    precise = f"-wp {_GREEDY_PRECISION}"
    # Its local cross-correlation, which is for one contrast, made overlap of MR and CT worse than before.
    greedy.execute(f"{images} -it {affine} -m NMI -n 100x50x10 {precise} -o {warp}")
    greedy.execute(f"-rf {fixed} -rc {whole} {precise} -r {warp} {affine}")
    return read_field(whole)


def _elastix(fixed: Path, moving: Path, work: Path) -> DisplacementField:
    """Klein et al., elastix: a toolbox for intensity-based medical image registration, IEEE TMI 2010."""
    import itk

    images = [itk.imread(str(path), itk.F) for path in (fixed, moving)]
    parameters = itk.ParameterObject.New()
    for stage in ("affine", "bspline"):
        parameters.AddParameterMap(itk.ParameterObject.GetDefaultParameterMap(stage))
    _, found = itk.elastix_registration_method(*images, parameter_object=parameters, log_to_console=False)
    whole = work / "whole.nrrd"
    itk.imwrite(itk.transformix_deformation_field(images[1], found), str(whole))
    return read_field(whole)


def _convexadam(fixed: Path, moving: Path, work: Path) -> DisplacementField:
    """Siebert et al., ConvexAdam: self-configuring dual-optimization-based 3D multitask registration, IEEE TMI 2024."""
    from convexAdam.convex_adam_MIND import convex_adam_pt

    images = [read_image(path) for path in (fixed, moving)]
    arrays = [np.ascontiguousarray(image_to_array(image).astype(np.float32).transpose()) for image in images]
    return from_learn2reg(convex_adam_pt(*arrays).astype(np.float32), Grid.from_image(images[0]))


CLASSICAL = {
    "ants": Classical("ants", "antspyx", "ANTs SyN: affine and diffeomorphic, mutual information", _ants),
    "greedy": Classical(
        "picsl_greedy", "picsl-greedy", "greedy: affine and diffeomorphic, normalised mutual information", _greedy
    ),
    "elastix": Classical("itk", "itk-elastix", "elastix: affine and B-splines, mutual information", _elastix),
    "convexadam": Classical(
        "convexAdam", "convexAdam", "ConvexAdam: discrete, then by Adam, MIND-SSC descriptors", _convexadam
    ),
}


def on_one_grid(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform) -> sitk.Image:
    """The moving image through a linear transform (fixed -> moving) at the fixed voxels, from where methods start."""
    return sitk.Resample(sitk.Cast(moving, sitk.sitkFloat32), fixed, transform, sitk.sitkLinear, _least(moving))


def _least(image: sitk.Image) -> float:
    return float(sitk.GetArrayViewFromImage(image).min())
