"""Images from and to files of any registered format, and what an image must be to be registered.

It is one 3-D scalar volume of plausible size, with plausible values.
"""

import logging
import math
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from llmreg.errors import BadImage, MissingFile
from llmreg.files import atomic_write
from llmreg.geometry.grid import Grid
from llmreg.images.formats import DEFAULT_ENDING, find_image_format

log = logging.getLogger(__name__)

# ITK's recursive smoothing needs this many voxels along each axis.
FEWEST_VOXELS = 4
# Generous limits of what scans have, in mm; whatever lies beyond was written in another unit. Slices of human scans lie
# up to some 20 mm apart. A volume's longest edge spans from a mouse's organ in micro-CT (voxels of 0.005 mm and less
# are welcome) to a tall man from head to foot. Slices are at most some 50 times as thick as their voxels are wide.
COARSEST_SPACING = 50.0
LONGEST_EDGE = (2.0, 3000.0)
STRONGEST_ANISOTROPY = 100.0
# Numbers that wrapped around in 16 bits: the value to which the lowest HU that programs write (-5000) wraps, the share
# of voxels that air and fat exceed in every CT, and the value that an image reaches before it overflows.
WRAPPED_HU = 2**16 - 5000
MANY = 0.01
BRIGHT = 30000


def read_image(path: Path) -> sitk.Image:
    """A 3-D scalar image; further axes and components of length 1 are dropped. Doubts about its position are logged.

    Raises:
        MissingFile: there is no such file.
        BadImage: the file is damaged, is no 3-D scalar image, or its spacing is implausible.
    """
    path = Path(path)
    stored = read_stored(path, "an image")
    image = to_scalar_volume(stored, path)
    if doubt := find_image_format(path).describe_doubt(stored, Grid.from_image(image)):
        warn_once(f"{path} {doubt}")
    return image


def read_stored(path: Path, kind: str) -> sitk.Image:
    """An image of any dimensions and components, as it is stored.

    Args:
        path: the file.
        kind: what the file should be, for messages: ``an image``, ``a displacement field``.

    Raises:
        MissingFile: there is no such file.
        BadImage: the file is damaged or cannot be read.
    """
    if path.is_dir():
        raise BadImage(
            path, "is a folder, but an image is one file", f"convert a DICOM series to {DEFAULT_ENDING} first"
        )
    if not path.is_file():
        raise MissingFile(path, "check its name")
    image_format = find_image_format(path)
    image_format.check(path)
    try:
        return image_format.read(path)
    except (RuntimeError, ValueError, LookupError, OSError) as error:
        if re.search("orthonormal|Refusing to change (direction|spacing)", str(error)):
            raise _explain_skewed_grid(path) from error
        raise BadImage(
            path, f"cannot be read as {kind}", f"copy it again if it is damaged, else save it as {DEFAULT_ENDING}"
        ) from error


def read_header(path: Path) -> sitk.ImageFileReader:
    """A reader that has read a file's header, and holds size and metadata. Raises RuntimeError when ITK cannot."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader


@cache
def warn_once(sentence: str) -> None:
    """Log a warning once in a process, although files are read at several steps."""
    log.warning("%s", sentence)


def write_image(image: sitk.Image, path: Path) -> None:
    """Write an image in the format of the file's ending, as a whole or not at all.

    Raises:
        BadImage: the format can only be read.
        OSError: (ENOSPC) the disk is full.
    """
    write = find_image_format(Path(path)).write
    if write is None:
        raise BadImage(path, "is of a format that is only read", f"end its name in {DEFAULT_ENDING}")
    with atomic_write(Path(path)) as temporary:
        write(image, temporary)


def to_scalar_volume(image: sitk.Image, name: Path | str) -> sitk.Image:
    """The image as a 3-D scalar one; further axes and components of length 1 are dropped.

    Args:
        image: any image.
        name: what errors call it.

    Raises:
        BadImage: it has other dimensions, several components, sheared axes or an implausible spacing.
    """
    volume = _drop_components(_drop_axes(image, name), name)
    spacing, axes = np.array(volume.GetSpacing()), np.reshape(volume.GetDirection(), (3, 3))
    # Rounded direction cosines are no shear: a hundredth is half a degree.
    if not np.allclose(axes.T @ axes, np.eye(3), rtol=0, atol=0.01):
        raise _explain_skewed_grid(name)
    edges = spacing * volume.GetSize()
    shortest, longest = LONGEST_EDGE
    coarsest = min(COARSEST_SPACING, STRONGEST_ANISOTROPY * spacing.min())
    if not shortest <= edges.max() <= longest or spacing.max() > coarsest:
        raise BadImage(
            name,
            f"has voxels of {format_sizes(spacing)} mm and measures {format_sizes(edges)} mm, as if its spacing were "
            "in metres or micrometres",
            "correct the spacing, or its unit, in the header",
        )
    return volume


def format_sizes(values: Iterable[float]) -> str:
    """Numbers for messages, as in 1x1.5x2."""
    return "x".join(f"{value:.6g}" for value in values)


def _drop_axes(image: sitk.Image, name: Path | str) -> sitk.Image:
    size = image.GetSize()
    first, volumes = size[:3], math.prod(size[3:])
    if len(size) < 3 or (volumes == 1 and min(first) == 1):
        raise BadImage(
            name,
            f"is a single slice (size {format_sizes(size)}), but images must be 3-D",
            "save all slices in one file",
        )
    if volumes > 1 and min(first) == 1:
        raise BadImage(
            name,
            f"has size {format_sizes(size)}, but an image is one 3-D volume",
            "take out the axes of length 1",
        )
    if volumes > 1:
        raise BadImage(
            name,
            f"holds {volumes} volumes of {format_sizes(first)}, but an image is one 3-D volume",
            "give each its own file",
        )
    if min(first) < FEWEST_VOXELS:
        raise BadImage(
            name,
            f"has size {format_sizes(size)}, but an image needs {FEWEST_VOXELS} voxels or more along each axis",
            "give more of the scan",
        )
    return image if len(size) == 3 else image[(slice(None),) * 3 + (0,) * (len(size) - 3)]


def _drop_components(image: sitk.Image, name: Path | str) -> sitk.Image:
    kind, components = image.GetPixelIDTypeAsString(), image.GetNumberOfComponentsPerPixel()
    if kind.startswith("complex"):
        raise BadImage(name, "holds complex numbers, but an image has one value per voxel", "save their magnitude")
    if components != 1:
        raise BadImage(
            name,
            f"has {components} values per voxel, as colours and vectors have, but an image has one",
            "save it in grey, or one component of it",
        )
    return sitk.VectorIndexSelectionCast(image, 0) if kind.startswith("vector") else image


def _explain_skewed_grid(name: Path | str) -> BadImage:
    return BadImage(
        name,
        "lies on no grid with right angles (its axes are sheared, or its header holds zeros)",
        "resample it, or correct its spacing and direction",
    )


def check_values(image: sitk.Image, name: Path | str) -> None:
    """Check the values of an image.

    Numbers that left the range of their type are refused where the values leave no doubt about it. Those that wrapped
    around lie at the far end of the 16 bits, several of them, and the middle is empty. An image that was scaled to the
    full range has values in the middle; a single far value may be a padding.

    Args:
        image: a scalar image.
        name: what errors call it.

    Raises:
        BadImage: it holds NaN, infinite or overflowed values, or only a single value.
    """
    values = sitk.GetArrayViewFromImage(image)
    if not np.isfinite(values).all():
        raise BadImage(name, "holds NaN or infinite values", "replace them with a number, for example 0")
    lowest, highest = float(values.min()), float(values.max())
    if lowest == highest:
        raise BadImage(name, f"is empty, every voxel is {values.min()}", "export the image again")
    if max(-lowest, highest) >= 2**31:
        raise BadImage(
            name,
            f"holds values up to {max(-lowest, highest):.3g}, beyond what scans measure",
            "export the image again",
        )
    if lowest >= 0 and WRAPPED_HU <= highest < 2**16:
        far = values[values >= 2**15]
        if WRAPPED_HU <= far.min() < highest and far.size > MANY * values.size:
            raise BadImage(
                name,
                f"holds values from {far.min():g} to {highest:g}, as if negative numbers had been stored in an "
                "unsigned type",
                "export it again as signed 16-bit",
            )
    if -(2**15) <= lowest < -(2**14) and highest >= BRIGHT:
        far = values[values < 0]
        if lowest < far.max() < -(2**14):
            raise BadImage(
                name,
                f"holds values from {lowest:g} to {far.max():g}, as if numbers above {2**15 - 1} had been stored in a "
                "signed type",
                "export it again as unsigned 16-bit",
            )
