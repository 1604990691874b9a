"""Dataset converters: their registry, and the raw dataset that they write, whose files appear all at once."""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llmreg import paths
from llmreg.data.dataset import Pair, load_dataset, pairs_among
from llmreg.errors import BadArgument, BadDownload, UserError
from llmreg.files import read_json, report_unwritable, write_json, write_text
from llmreg.images.formats import DEFAULT_ENDING
from llmreg.registry import Registry
from llmreg.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Converter:
    """A converter of one public download to a raw dataset.

    Attributes:
        summary: a line for the command line's help and the documentation.
        options: the class of its options. Each field has a description, and is a string, a path, a number or one of
            several strings (``Literal``); ``llmreg_convert_dataset`` offers it as an option of its name, which must be
            given where the field has no default.
        default_id: the id of the dataset where none is given, for the help.
        convert: takes the folder of the unpacked download, the options and the dataset's id (None: the default one),
            writes the dataset below ``llmreg_raw`` and returns its folder.
    """

    summary: str
    options: type[Settings]
    default_id: str
    convert: Callable[[Path, Any, int | None], Path]


CONVERTERS: Registry[Converter] = Registry(
    "dataset converter",
    "llmreg.converters",
    ("llmreg.data.converters.learn2reg_abdomen_mrct", "llmreg.data.converters.sr_reg"),
)


@dataclass(frozen=True)
class RawImage:
    """An image of a download and the case it becomes.

    Attributes:
        name: of the case.
        image: the image's file.
        label: its label map.
        mask: its foreground.
        part: the end of the folders' names, as in ``imagesTr`` and ``imagesTs``.
    """

    name: str
    image: Path
    label: Path | None = None
    mask: Path | None = None
    part: str = "Tr"

    @property
    def subject(self) -> str:
        """The subject's four digits."""
        return self.name[-9:-5]

    @property
    def modality(self) -> int:
        """The modality's number."""
        return int(self.name[-4:])

    @property
    def files(self) -> dict[str, tuple[Path, str]]:
        """The download's files, and their paths in the dataset's folder, by their keys in ``dataset.json``."""
        return {
            key: (file, f"{key}s{self.part}/{self.name}{DEFAULT_ENDING}")
            for key, file in (("image", self.image), ("label", self.label), ("mask", self.mask))
            if file is not None
        }

    @property
    def entry(self) -> dict[str, str]:
        """Its entry under ``training`` in ``dataset.json``."""
        return {key: f"./{path}" for key, (_, path) in self.files.items()}


def read_protocol(name: str) -> dict[str, Any]:
    """Read a division into training and test cases that is installed with llmreg."""
    return dict(read_json(Path(__file__).parent / "protocols" / name))


def check_download(source: Path) -> None:
    """Raise BadDownload when the download is not a folder."""
    if not source.is_dir():
        raise BadDownload(source, "is not a folder", "unpack the download and give the folder that is made")


def new_dataset_folder(dataset_id: int, name: str) -> Path:
    """The folder of a new dataset under ``llmreg_raw``.

    Raises:
        BadArgument: the id is not of three digits, or is taken.
    """
    if not 0 <= dataset_id <= 999:
        raise BadArgument(
            "dataset_id", f"The dataset id {dataset_id} has more than three digits: choose one from 1 to 999."
        )
    raw = paths.raw_folder()
    existing = sorted(raw.glob(f"Dataset{dataset_id:03d}_*"))
    if existing:
        raise BadArgument("dataset_id", f"{existing[0]} exists already: remove it, or choose another dataset id.")
    return raw / f"Dataset{dataset_id:03d}_{name}"


def write_raw_dataset(
    folder: Path,
    images: Sequence[RawImage],
    description: Mapping[str, Any],
    validation: Sequence[Pair] = (),
    test: Sequence[Pair] = (),
) -> None:
    """Write a dataset's folder: images, label maps, masks, ``dataset.json`` and tables of pairs for ``llmreg_predict``.

    Args:
        folder: from :func:`new_dataset_folder`.
        images: all images; those of a held-out subject that are in no pair are left out: nothing may learn from them.
        description: ``dataset.json`` without the lists of cases.
        validation: pairs whose subjects are kept out of training, as ``registration_val``.
        test: the same as ``registration_test``.

    Raises:
        NotWritable: the folder cannot be written.
        UserError: a file of the download cannot be read.
    """
    path_of = {image.name: image.files["image"][1] for image in images}
    held_out = {name for pair in (*validation, *test) for name in (pair.fixed, pair.moving)}
    subjects = {image.subject for image in images if image.name in held_out}
    training = [image for image in images if image.subject not in subjects]
    used = [image for image in images if image.name in held_out or image.subject not in subjects]
    with report_unwritable(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.mkdtemp(prefix=".partial-", dir=folder.parent)
    # The hidden folder has the dataset's name, so that the dataset can be loaded before it is moved to its place.
    unfinished = Path(temporary, folder.name)
    try:
        for source, target in tqdm([pair for image in used for pair in image.files.values()], "Link", unit="file"):
            _link_or_copy(source, unfinished / target)
        write_json(
            unfinished / "dataset.json",
            dict(description)
            | {
                "training": {
                    str(modality): [image.entry for image in training if image.modality == modality]
                    for modality in sorted({image.modality for image in training})
                },
                "registration_val": _list_pairs(validation, path_of),
                "registration_test": _list_pairs(test, path_of),
            },
        )
        for part, pairs in (("validation", validation), ("test", test)):
            if pairs:
                rows = [f"{path_of[pair.fixed]},{path_of[pair.moving]}\n" for pair in pairs]
                write_text(unfinished / f"{part}_pairs.csv", "fixed,moving\n" + "".join(rows))
        dataset = load_dataset(unfinished)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    log.info(
        "%s: %d pairs to train on, %d to validate and %d to test with.",
        folder,
        len(pairs_among(dataset, [image.name for image in training])),
        len(validation),
        len(test),
    )


def _list_pairs(pairs: Iterable[Pair], path_of: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"fixed": f"./{path_of[pair.fixed]}", "moving": f"./{path_of[pair.moving]}"} for pair in pairs]


def _link_or_copy(source: Path, target: Path) -> None:
    """Make a hard link, which takes no space, or a copy where the disk or the file's owner forbids links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # A symbolic link is resolved: it may be relative, and would lead nowhere from the new folder.
    source = source.resolve()
    try:
        os.link(source, target)
    except OSError:
        try:
            shutil.copy2(source, target)
        except OSError as error:
            raise UserError(f"{source} cannot be copied to {target}: {error.strerror}.") from error
