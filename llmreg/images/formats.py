"""The registries of file formats of images and of displacement fields, and what file names say."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import SimpleITK as sitk

from llmreg.geometry.field import DisplacementField
from llmreg.geometry.grid import Grid
from llmreg.registry import Registry

# The ending of images that llmreg writes.
DEFAULT_ENDING = ".nii.gz"


@dataclass(frozen=True)
class ImageFormat:
    """A file format of images.

    Attributes:
        name: the name in the registry and in messages.
        endings: the endings of its files' names, the preferred one first.
        read: reads a file as it is stored; raises RuntimeError, ValueError or OSError when it cannot.
        write: writes an image to a path that may be temporary and has one of the endings; None when the format is only
            read.
        check: raises :class:`llmreg.errors.BadImage` for damage in a file that ``read`` would pass over.
        describe_doubt: from an image as it was read and its grid, what the header leaves open: a clause that continues
            the path, or empty. It is logged once.
    """

    name: str
    endings: tuple[str, ...]
    read: Callable[[Path], sitk.Image]
    write: Callable[[sitk.Image, Path], None] | None = None
    check: Callable[[Path], None] = lambda path: None
    describe_doubt: Callable[[sitk.Image, Grid], str] = lambda image, grid: ""


IMAGE_FORMATS: Registry[ImageFormat] = Registry("image format", "llmreg.image_formats", ["llmreg.images.itk"])


def register_image_format(image_format: ImageFormat) -> ImageFormat:
    """Make a format known, and return it.

    A package outside llmreg calls this in a module that it names in its entry points, in the group
    ``llmreg.image_formats``.

    Raises:
        ValueError: the name is taken.
    """
    return IMAGE_FORMATS.register(image_format.name, image_format)


def image_endings(*, writable: bool = False) -> tuple[str, ...]:
    """The endings of image files, :data:`DEFAULT_ENDING` first.

    Args:
        writable: only those of formats that can be written.
    """
    return tuple(
        ending
        for image_format in IMAGE_FORMATS.parts.values()
        if image_format.write or not writable
        for ending in image_format.endings
    )


def find_image_format(path: Path) -> ImageFormat:
    """The format with the longest ending of a file's name; ``ITK``, which looks at the content, when none has it."""
    ending = max(filter(path.name.endswith, image_endings()), key=len, default="")
    formats = IMAGE_FORMATS.parts.values()
    return next((image_format for image_format in formats if ending in image_format.endings), IMAGE_FORMATS.get("ITK"))


def strip_ending(path: Path, endings: Iterable[str] | None = None) -> str:
    """A file's name without its ending, or without its last suffix when it has none of them: the case's name.

    Args:
        path: the file.
        endings: those of images when None.
    """
    ending = max(filter(path.name.endswith, endings or image_endings()), key=len, default=path.suffix)
    return path.name.removesuffix(ending)


@dataclass(frozen=True)
class FieldFormat:
    """A file format of displacement fields.

    Attributes:
        endings: the endings of its files' names; the first is given to files whose names the user does not choose.
        read: from a path, the fixed grid and the moving grid (which only formats without geometry look at); raises
            :class:`llmreg.errors.MissingFile`, or :class:`llmreg.errors.UnreadableFile` for a file that is damaged or
            holds something else.
        write: a field to a path, with the moving grid.
    """

    endings: tuple[str, ...]
    read: Callable[[Path, Grid | None, Grid | None], DisplacementField]
    write: Callable[[DisplacementField, Path, Grid | None], None]


FIELD_FORMATS: Registry[FieldFormat] = Registry("field format", "llmreg.field_formats", ["llmreg.images.field_formats"])


def field_endings() -> tuple[str, ...]:
    """The endings of files of fields in any format."""
    return tuple(dict.fromkeys(ending for part in FIELD_FORMATS.parts.values() for ending in part.endings))
