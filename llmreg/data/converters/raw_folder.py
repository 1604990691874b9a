"""Writing a raw dataset from the files of a download: linked rather than copied, and whole or not at all."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llmreg import paths
from llmreg.data.dataset import Pair, load_dataset, pairs_among
from llmreg.errors import UserError
from llmreg.files import read_json, write_json, write_text

log = logging.getLogger(__name__)

TEST_PAIRS, VALIDATION_PAIRS = "test_pairs.csv", "validation_pairs.csv"


@dataclass(frozen=True)
class RawImage:
    """An image of a download and the case it becomes; ``part`` ends the folders' names (``imagesTr``, ``imagesTs``)."""

    name: str
    image: Path
    label: Path | None = None
    mask: Path | None = None
    part: str = "Tr"

    @property
    def subject(self) -> str:
        return self.name[-9:-5]

    @property
    def modality(self) -> int:
        return int(self.name[-4:])

    @property
    def path(self) -> str:
        return self._path("images")

    @property
    def entry(self) -> dict[str, str]:
        """Its entry under ``training``."""
        found = {"image": f"./{self.path}"}
        if self.label is not None:
            found["label"] = f"./{self._path('labels')}"
        if self.mask is not None:
            found["mask"] = f"./{self._path('masks')}"
        return found

    @property
    def files(self) -> dict[str, Path]:
        """Path in the dataset's folder -> the download's file."""
        kinds = {"images": self.image, "labels": self.label, "masks": self.mask}
        return {self._path(kind): file for kind, file in kinds.items() if file is not None}

    def _path(self, kind: str) -> str:
        return f"{kind}{self.part}/{self.name}.nii.gz"


def read_protocol(name: str) -> dict[str, Any]:
    """A division into training and test that is installed with llmreg."""
    content: dict[str, Any] = read_json(Path(__file__).parent / "protocols" / name)
    return content


def check_download(source: Path) -> None:
    """Raises UserError when the download is not a folder."""
    if not source.is_dir():
        raise UserError(f"{source} is not a folder: unpack the download and give the folder it made.")


def new_dataset_folder(dataset_id: int, name: str) -> Path:
    """Where the dataset will lie under ``llmreg_raw``.

    Raises:
        UserError: the id is not of three digits or is taken.
    """
    if not 0 <= dataset_id <= 999:
        raise UserError(f"The dataset id {dataset_id} has more than three digits: give one from 1 to 999 with -d.")
    raw = paths.raw_folder()
    taken = sorted(raw.glob(f"Dataset{dataset_id:03d}_*"))
    if taken:
        raise UserError(f"{taken[0]} exists already: remove it, or give another dataset id with -d.")
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
        images: all images; those of a held-out person that are in no pair are left out, as nothing may learn from them.
        description: ``dataset.json`` without the lists of cases.
        validation: pairs whose people are kept out of training, as ``registration_val``.
        test: the same as ``registration_test``.

    Raises:
        UserError: the folder cannot be written or a file of the download cannot be read.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"Cannot write {folder}: {error.strerror}. Set llmreg_raw to a folder that you may write to."
        ) from error
    path_of = {image.name: image.path for image in images}
    held_out = {name for pair in (*validation, *test) for name in (pair.fixed, pair.moving)}
    people = {image.subject for image in images if image.name in held_out}
    training = [image for image in images if image.subject not in people]
    listed = [image for image in images if image.name in held_out or image.subject not in people]
    # Named like the dataset in the end, so that what was written can be read back before it is seen.
    whole = temporary / folder.name
    try:
        for target, source in tqdm([f for image in listed for f in image.files.items()], "Link", unit="file"):
            _place(source, whole / target)
        write_json(
            whole / "dataset.json",
            dict(description)
            | {
                "training": {
                    str(modality): [image.entry for image in training if image.modality == modality]
                    for modality in sorted({image.modality for image in training})
                },
                "registration_val": _listed(validation, path_of),
                "registration_test": _listed(test, path_of),
            },
        )
        for name, pairs in ((VALIDATION_PAIRS, validation), (TEST_PAIRS, test)):
            if pairs:
                rows = [f"{path_of[pair.fixed]},{path_of[pair.moving]}\n" for pair in pairs]
                write_text(whole / name, "fixed,moving\n" + "".join(rows))
        dataset = load_dataset(whole)
        whole.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    pairs = pairs_among(dataset, [image.name for image in training])
    log.info(
        "%s: %d pairs to train on, %d to validate and %d to test with.", folder, len(pairs), len(validation), len(test)
    )


def _listed(pairs: Iterable[Pair], path_of: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"fixed": f"./{path_of[pair.fixed]}", "moving": f"./{path_of[pair.moving]}"} for pair in pairs]


def _place(source: Path, target: Path) -> None:
    """A hard link, which takes no space; a copy where the disk or the file's owner forbids it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # Of a symbolic link, the file itself: it may be relative, and would lead nowhere from here.
    source = source.resolve()
    try:
        os.link(source, target)
    except OSError:
        try:
            shutil.copy2(source, target)
        except OSError as error:
            raise UserError(f"Cannot copy {source} to {target}: {error.strerror}.") from error
