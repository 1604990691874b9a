"""Images from and to files of any registered format."""

import logging
import re
from functools import cache
from pathlib import Path

import SimpleITK as sitk

from llmreg.errors import BadImage, MissingFile
from llmreg.files import atomic_write
from llmreg.geometry.grid import Grid
from llmreg.images.checks import skewed_grid, to_scalar_volume
from llmreg.images.formats import DEFAULT_ENDING, find_image_format

log = logging.getLogger(__name__)


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
    except (RuntimeError, ValueError, OSError) as error:
        if re.search("orthonormal|Refusing to change (direction|spacing)", str(error)):
            raise skewed_grid(path) from error
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
