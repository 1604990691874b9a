"""Learn2Reg's AbdomenMRCT: eight subjects with MR and CT, and others with MR (CHAOS) or CT (BCV) alone."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from llmreg.data.converters.converter import (
    CONVERTERS,
    Converter,
    RawImage,
    check_download,
    new_dataset_folder,
    read_protocol,
    write_raw_dataset,
)
from llmreg.data.dataset import Pair
from llmreg.data.dataset_json import RawDataset, RawPair, description_file, label_table, validate
from llmreg.errors import BadDownload
from llmreg.files import read_json
from llmreg.images.formats import DEFAULT_ENDING, strip_ending
from llmreg.settings import Settings

log = logging.getLogger(__name__)

Protocol = Literal["paper", "learn2reg"]

MR, CT = 0, 1
_LABELS = {1: "liver", 2: "spleen", 3: "kidney_right", 4: "kidney_left"}
# The default id and the name of the dataset that each protocol makes.
_DATASETS: dict[Protocol, tuple[int, str]] = {
    "paper": (101, "AbdomenMRCT"),
    "learn2reg": (102, "AbdomenMRCTLearn2Reg"),
}
_PAPER_COUNTS = (46, 55)

PAPER_FILE = "learn2reg_abdomen_mrct_paper.json"
_PAPER_SEED = 2408
_PAPER_NOTE = (
    "A draw of our own for the protocol of LLM-Morph (arXiv 2408.10703): ten MR and ten CT images are tested in ten "
    "pairs of different people, all others are trained on in all combinations. The paper's own draw is not published. "
    "Neither the names of the download's unpaired images nor which of them the paper left out (it counts 46 MR and 55 "
    "CT) could be verified, so here are random orders of positions instead of names: position 1 is the first by name "
    "of a modality's labelled images in imagesTr. Tested are the first ten MR images of mr_order, the CT images of the "
    "same people, and the first CT images of ct_order of people without MR, ten in all. Made by make_paper_protocol() "
    "in llmreg/data/converters/learn2reg_abdomen_mrct.py."
)
# The download holds fewer images of one modality.
_POSITIONS = 100


class Options(Settings):
    """What the user decides."""

    protocol: Protocol = Field(
        default="paper",
        description="paper: every MR with every CT, 10 of each for testing (default); learn2reg: the images of one "
        "subject, the official validation pairs held out",
    )


def convert(source: Path, options: Options, dataset_id: int | None = None) -> Path:
    """Make a raw dataset of the unpacked download.

    Args:
        source: the folder with ``imagesTr`` (or the one above it).
        options: the protocol. ``paper``: every MR with every CT, ten images of each kept for testing; ``learn2reg``:
            the two images of each subject, with the official validation pairs held out.
        dataset_id: 101 for ``paper`` and 102 for ``learn2reg`` when None.

    Returns:
        The dataset's folder.

    Raises:
        BadDownload: the folder is not the download, or has too few images.
        BadArgument: the id is taken.
    """
    check_download(source)
    if not (source / "imagesTr").is_dir() and (source / "AbdomenMRCT" / "imagesTr").is_dir():
        source = source / "AbdomenMRCT"
    default_id, name = _DATASETS[options.protocol]
    target = new_dataset_folder(default_id if dataset_id is None else dataset_id, name)
    images = _list_images(source, "Tr")
    for modality, contrast in ((MR, "MR"), (CT, "CT")):
        if not any(image.modality == modality for image in images):
            raise BadDownload(
                source / "imagesTr",
                f"holds no {contrast} image AbdomenMRCT_<subject>_{modality:04d}{DEFAULT_ENDING}",
                "give the folder of the unpacked AbdomenMRCT download",
            )
    labels = _LABELS
    official: RawDataset | None = None
    if any(source.glob("*dataset.json")):
        file = description_file(source)
        official = validate(RawDataset, read_json(file), file)
        labels = label_table(official.labels, file) or _LABELS
    description = {
        "name": name,
        "description": "AbdomenMRCT of Learn2Reg (https://learn2reg.grand-challenge.org), converted by llmreg; the "
        "download's README_LICENCE files hold the terms of use",
        "protocol": options.protocol,
        "modality": {str(MR): "MR", str(CT): "CT"},
        "registration_direction": {"fixed": MR, "moving": CT},
        "labels": {"0": "background"} | {str(label): structure for label, structure in labels.items()},
    }
    if options.protocol == "paper":
        labelled = [image for image in images if image.label is not None]
        if len(labelled) < len(images):
            log.warning(
                "%d images are left out, as %s lacks their label maps, such as %s.",
                len(images) - len(labelled),
                source / "labelsTr",
                next(image.name for image in images if image.label is None),
            )
        test = paper_test_pairs(labelled, read_protocol(PAPER_FILE), source)
        counts = tuple(sum(image.modality == modality for image in labelled) for modality in (MR, CT))
        if counts != _PAPER_COUNTS:
            log.warning(
                "%s holds %d MR and %d CT images with labels; the paper counts %d and %d and does not say which it "
                "left out, so there will be other images to train on than the paper's.",
                source,
                *counts,
                *_PAPER_COUNTS,
            )
        write_raw_dataset(target, labelled, description | {"pairings": "unpaired"}, test=test)
    else:
        challenge = _list_images(source, "Ts")
        ct_of = {image.subject: image.name for image in challenge if image.modality == CT}
        write_raw_dataset(
            target,
            [*images, *challenge],
            description | {"pairings": "intra_subject"},
            validation=_official_validation(images, source, official),
            test=[Pair(i.name, ct_of[i.subject]) for i in challenge if i.modality == MR and i.subject in ct_of],
        )
    return target


def make_paper_protocol() -> dict[str, Any]:
    """Draw what ``protocols/learn2reg_abdomen_mrct_paper.json`` holds."""
    # NumPy's older generator, whose numbers will not change.
    random = np.random.RandomState(_PAPER_SEED)
    return {
        "note": _PAPER_NOTE,
        "seed": _PAPER_SEED,
        "test_images": 10,
        "mr_order": (random.permutation(_POSITIONS) + 1).tolist(),
        "ct_order": (random.permutation(_POSITIONS) + 1).tolist(),
    }


def paper_test_pairs(images: Sequence[RawImage], protocol: Mapping[str, Any], source: Path) -> list[Pair]:
    """Choose ten MR and ten CT images in pairs of different subjects, so that none of these subjects is trained on.

    Args:
        images: all labelled images.
        protocol: from :func:`make_paper_protocol`.
        source: the download, for error messages.

    Raises:
        BadDownload: it has too few images.
    """
    number = protocol["test_images"]
    mr, ct = (sorted((i for i in images if i.modality == m), key=lambda image: image.name) for m in (MR, CT))
    tested = _in_order(mr, protocol["mr_order"])[:number]
    subjects_with_mr, tested_subjects = {image.subject for image in mr}, {image.subject for image in tested}
    same_subjects = [image for image in ct if image.subject in tested_subjects]
    other_subjects = [image for image in _in_order(ct, protocol["ct_order"]) if image.subject not in subjects_with_mr]
    tested_ct = (same_subjects + other_subjects)[:number]
    if len(tested_ct) < number or len(mr) <= number or len(ct) <= number:
        raise BadDownload(
            source,
            f"has {len(mr)} MR and {len(ct)} CT images with labels, but the paper's protocol tests {number} of each "
            "and trains on others",
            "unpack the whole download, or use the protocol learn2reg",
        )
    # Subjects with both images come first in both lists and in the same order, so shifting by one pairs none of them
    # with itself.
    paired_subjects = {image.subject for image in same_subjects}
    tested_mr = sorted(tested, key=lambda image: (image.subject not in paired_subjects, image.name))
    return [Pair(m.name, c.name) for m, c in zip(tested_mr, tested_ct[1:] + tested_ct[:1], strict=True)]


def _in_order(images: Sequence[RawImage], order: Iterable[int]) -> list[RawImage]:
    return [images[position - 1] for position in order if position <= len(images)]


def _list_images(source: Path, part: str) -> list[RawImage]:
    """List the images of ``imagesTr`` or ``imagesTs`` with their label maps and masks, by name."""
    pattern = f"AbdomenMRCT_[0-9][0-9][0-9][0-9]_000[01]{DEFAULT_ENDING}"
    images = []
    for path in sorted((source / f"images{part}").glob(pattern)):
        files = (source / f"{kind}{part}" / path.name for kind in ("labels", "masks"))
        label, mask = (file if file.is_file() else None for file in files)
        images.append(RawImage(strip_ending(path), path, label, mask, part))
    return images


def _official_validation(images: Sequence[RawImage], source: Path, official: RawDataset | None) -> list[Pair]:
    """The challenge's validation pairs: those of its description, else those of subjects 0006, 0007 and 0008."""
    pairs = [Pair(*(f"AbdomenMRCT_{subject}_{m:04d}" for m in (MR, CT))) for subject in ("0006", "0007", "0008")]
    if official is not None and official.registration_val:
        file = description_file(source)
        entries = [
            validate(RawPair, entry, file, "registration_val", position)
            for position, entry in enumerate(official.registration_val)
        ]
        pairs = [Pair(strip_ending(Path(pair.fixed)), strip_ending(Path(pair.moving))) for pair in entries]
    missing = sorted({name for pair in pairs for name in (pair.fixed, pair.moving)} - {image.name for image in images})
    if missing:
        raise BadDownload(
            source / "imagesTr" / f"{missing[0]}{DEFAULT_ENDING}",
            "of the official validation pairs does not exist",
            "unpack the whole download, or use the protocol paper",
        )
    return pairs


CONVERTERS.register(
    "learn2reg-abdomen-mrct",
    Converter("Learn2Reg's AbdomenMRCT: MR and CT of the abdomen", Options, "101, or 102 for learn2reg", convert),
)
