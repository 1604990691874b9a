"""Classical registration of two images by other programs, each with its own defaults for two contrasts.

The images share a grid, on which each method returns a displacement field.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from llmreg.geometry.field import DisplacementField, from_learn2reg
from llmreg.geometry.grid import Grid, image_to_array
from llmreg.images.fields import read_field
from llmreg.images.formats import DEFAULT_ENDING
from llmreg.images.image_files import read_image


@dataclass(frozen=True)
class Classical:
    """A classical method.

    Attributes:
        title: its name in tables.
        module: the name it is imported by.
        package: the name it is installed by.
        register: takes the files of the fixed and the moving image and a folder for temporary files.
    """

    title: str
    module: str
    package: str
    register: Callable[[Path, Path, Path], DisplacementField]


def register_by_ants(fixed: Path, moving: Path, work: Path) -> DisplacementField:
    """Avants et al., Symmetric diffeomorphic image registration with cross-correlation, MedIA 2008."""
    import ants

    images = [ants.image_read(str(path)) for path in (fixed, moving)]
    prefix = f"{work}/ants_"
    result = ants.registration(*images, "SyN", outprefix=prefix)
    composed = ants.apply_transforms(*images, result["fwdtransforms"], compose=prefix)
    return read_field(Path(composed))


def register_by_greedy(fixed: Path, moving: Path, work: Path) -> DisplacementField:
    """Yushkevich et al., Fast automatic segmentation of hippocampal subfields, Alzheimer's & Dementia 2016."""
    from picsl_greedy import Greedy3D

    greedy, images = Greedy3D(), f"-i {fixed} {moving}"
    affine, warp, composed = (work / name for name in ("affine.mat", f"warp{DEFAULT_ENDING}", f"whole{DEFAULT_ENDING}"))
    greedy.execute(f"{images} -a -dof 12 -ia-identity -m NMI -n 100x50x10 -o {affine}")
    # Fields are written in full precision. The default rounds them to a tenth of a voxel, which adds folds and jumps.
    precision = "-wp 0"
    # NMI replaces greedy's local cross-correlation, which is made for one contrast and lowered the Dice of MR and CT.
    greedy.execute(f"{images} -it {affine} -m NMI -n 100x50x10 {precision} -o {warp}")
    greedy.execute(f"-rf {fixed} -rc {composed} {precision} -r {warp} {affine}")
    return read_field(composed)


def register_by_elastix(fixed: Path, moving: Path, work: Path) -> DisplacementField:
    """Klein et al., elastix: a toolbox for intensity-based medical image registration, IEEE TMI 2010."""
    import itk

    images = [itk.imread(str(path), itk.F) for path in (fixed, moving)]
    parameters = itk.ParameterObject.New()
    for stage in ("affine", "bspline"):
        parameters.AddParameterMap(itk.ParameterObject.GetDefaultParameterMap(stage))
    _, transform = itk.elastix_registration_method(*images, parameter_object=parameters, log_to_console=False)
    composed = work / "composed.nrrd"
    itk.imwrite(itk.transformix_deformation_field(images[1], transform), str(composed))
    return read_field(composed)


def register_by_convexadam(fixed: Path, moving: Path, work: Path) -> DisplacementField:
    """Siebert et al., ConvexAdam: self-configuring dual-optimization-based 3D multitask registration, IEEE TMI 2024."""
    from convexAdam.convex_adam_MIND import convex_adam_pt

    images = [read_image(path) for path in (fixed, moving)]
    arrays = [np.ascontiguousarray(image_to_array(image).astype(np.float32).transpose()) for image in images]
    return from_learn2reg(convex_adam_pt(*arrays).astype(np.float32), Grid.from_image(images[0]))


CLASSICAL = {
    "ants": Classical("ANTs SyN", "ants", "antspyx", register_by_ants),
    "greedy": Classical("greedy", "picsl_greedy", "picsl-greedy", register_by_greedy),
    "elastix": Classical("elastix", "itk", "itk-elastix", register_by_elastix),
    "convexadam": Classical("ConvexAdam", "convexAdam", "convexAdam", register_by_convexadam),
}


def is_installed(method: str) -> bool:
    """Whether the package of a classical method can be imported."""
    return find_spec(CLASSICAL[method].module) is not None


def resample_onto(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform) -> sitk.Image:
    """Resample the moving image onto the fixed grid by a linear transform (fixed -> moving), linearly, as float32.

    Outside, the image gets its own smallest value.
    """
    smallest = float(sitk.GetArrayViewFromImage(moving).min())
    return sitk.Resample(sitk.Cast(moving, sitk.sitkFloat32), fixed, transform, sitk.sitkLinear, smallest)
