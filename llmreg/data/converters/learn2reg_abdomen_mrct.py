"""Learn2Reg's AbdomenMRCT: eight people with MR and CT to train on, and others with MR (CHAOS) or CT (BCV) alone."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from pydantic import TypeAdapter

from llmreg.data.converters.raw_folder import (
    RawImage,
    check_download,
    new_dataset_folder,
    read_protocol,
    write_raw_dataset,
)
from llmreg.data.dataset import Pair
from llmreg.data.dataset_json import RawDataset, RawPair, description_file, label_table, validated
from llmreg.errors import UserError
from llmreg.files import read_json

log = logging.getLogger(__name__)

Protocol = Literal["paper", "learn2reg"]

MR, CT = 0, 1
_IMAGE = re.compile(r"AbdomenMRCT_[0-9]{4}_000[01]\.nii\.gz")
_LABELS = {1: "liver", 2: "spleen", 3: "kidney_right", 4: "kidney_left"}
_DEFAULT_ID: dict[Protocol, int] = {"paper": 101, "learn2reg": 102}
_NAME: dict[Protocol, str] = {"paper": "AbdomenMRCT", "learn2reg": "AbdomenMRCTLearn2Reg"}
_OFFICIAL_VALIDATION = ("0006", "0007", "0008")
_PAPER_COUNTS = {MR: 46, CT: 55}

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
# More images of one modality than the download holds.
_POSITIONS = 100


def convert(source: Path, protocol: Protocol = "paper", dataset_id: int | None = None) -> Path:
    """Make a raw dataset of the unpacked download.

    Args:
        source: the folder with ``imagesTr`` (or the one above it).
        protocol: ``paper``: every MR with every CT, ten images of each kept for testing; ``learn2reg``: the two images
            of each person, with the official validation pairs held out.
        dataset_id: 101 for ``paper`` and 102 for ``learn2reg`` when None.

    Returns:
        The dataset's folder.

    Raises:
        UserError: the folder is not the download, has too few images, or the dataset exists already.
    """
    source = Path(source)
    check_download(source)
    if not (source / "imagesTr").is_dir() and (source / "AbdomenMRCT" / "imagesTr").is_dir():
        source = source / "AbdomenMRCT"
    target = new_dataset_folder(_DEFAULT_ID[protocol] if dataset_id is None else dataset_id, _NAME[protocol])
    images = _images(source, "Tr")
    for modality, contrast in ((MR, "MR"), (CT, "CT")):
        if not any(image.modality == modality for image in images):
            raise UserError(
                f"{source / 'imagesTr'} holds no {contrast} image AbdomenMRCT_<subject>_{modality:04d}.nii.gz: give "
                "the folder of the unpacked AbdomenMRCT download."
            )
    official = _official(source)
    description = {
        "name": _NAME[protocol],
        "description": "AbdomenMRCT of Learn2Reg (https://learn2reg.grand-challenge.org), converted by llmreg; the "
        "download's README_LICENCE files hold the terms of use",
        "protocol": protocol,
        "modality": {str(MR): "MR", str(CT): "CT"},
        "registration_direction": {"fixed": MR, "moving": CT},
        "labels": _labels(source, official),
    }
    if protocol == "paper":
        images = _labelled(images, source)
        test = paper_test_pairs(images, read_protocol(PAPER_FILE))
        _report_counts(images, source)
        write_raw_dataset(target, images, description | {"pairings": "unpaired"}, test=test)
    else:
        challenge = _images(source, "Ts")
        write_raw_dataset(
            target,
            [*images, *challenge],
            description | {"pairings": "intra_subject"},
            validation=_official_validation(images, source, official),
            test=_both_images(challenge),
        )
    return target


def make_paper_protocol() -> dict[str, Any]:
    """What ``protocols/learn2reg_abdomen_mrct_paper.json`` holds."""
    # The older generator, whose numbers NumPy will not change.
    random = np.random.RandomState(_PAPER_SEED)
    return {
        "note": _PAPER_NOTE,
        "seed": _PAPER_SEED,
        "test_images": 10,
        "mr_order": (random.permutation(_POSITIONS) + 1).tolist(),
        "ct_order": (random.permutation(_POSITIONS) + 1).tolist(),
    }


def paper_test_pairs(images: Sequence[RawImage], protocol: Mapping[str, Any]) -> list[Pair]:
    """Ten MR and ten CT images in pairs of different people, so that none of these people is trained on.

    Args:
        images: all labelled images.
        protocol: from :func:`make_paper_protocol`.

    Raises:
        UserError: too few images.
    """
    number = protocol["test_images"]
    mr, ct = (sorted((i for i in images if i.modality == m), key=lambda image: image.name) for m in (MR, CT))
    tested = _in_order(mr, protocol["mr_order"])[:number]
    people_with_mr, tested_people = {image.subject for image in mr}, {image.subject for image in tested}
    theirs = [image for image in ct if image.subject in tested_people]
    others = [image for image in _in_order(ct, protocol["ct_order"]) if image.subject not in people_with_mr]
    tested_ct = (theirs + others)[:number]
    if len(tested_ct) < number or len(mr) <= number or len(ct) <= number:
        raise UserError(
            f"The paper's protocol tests {number} MR and {number} CT images and trains on others, but there are "
            f"{len(mr)} MR and {len(ct)} CT images with labels: unpack the whole download, or use --protocol learn2reg."
        )
    # People with both come first in both lists and in one order, so shifting by one keeps anyone from being paired
    # with themselves.
    both = {image.subject for image in theirs}
    tested_mr = sorted(tested, key=lambda image: (image.subject not in both, image.name))
    return [Pair(m.name, c.name) for m, c in zip(tested_mr, tested_ct[1:] + tested_ct[:1], strict=True)]


def _in_order(images: Sequence[RawImage], order: Iterable[int]) -> list[RawImage]:
    return [images[position - 1] for position in order if position <= len(images)]


def _images(source: Path, part: str) -> list[RawImage]:
    """The images of ``imagesTr`` or ``imagesTs`` with what lies beside them, by name."""
    found = []
    for path in sorted((source / f"images{part}").glob("*.nii.gz")):
        if _IMAGE.fullmatch(path.name):
            label, mask = (source / f"{kind}{part}" / path.name for kind in ("labels", "masks"))
            found.append(
                RawImage(
                    path.name.removesuffix(".nii.gz"),
                    path,
                    label if label.is_file() else None,
                    mask if mask.is_file() else None,
                    part,
                )
            )
    return found


def _labelled(images: Sequence[RawImage], source: Path) -> list[RawImage]:
    labelled = [image for image in images if image.label is not None]
    if len(labelled) < len(images):
        log.warning(
            "%d images are left out, as %s lacks their label maps, such as %s.",
            len(images) - len(labelled),
            source / "labelsTr",
            next(image.name for image in images if image.label is None),
        )
    return labelled


def _report_counts(images: Sequence[RawImage], source: Path) -> None:
    counts = {modality: sum(image.modality == modality for image in images) for modality in (MR, CT)}
    if counts != _PAPER_COUNTS:
        log.warning(
            "%s holds %d MR and %d CT images with labels; the paper counts %d and %d and does not say which it left "
            "out, so there will be other images to train on than the paper's.",
            source,
            counts[MR],
            counts[CT],
            _PAPER_COUNTS[MR],
            _PAPER_COUNTS[CT],
        )


def _official(source: Path) -> RawDataset | None:
    """The challenge's own description, where the download still has it."""
    if not any(source.glob("*dataset.json")):
        return None
    file = description_file(source)
    return cast(RawDataset, validated(TypeAdapter(RawDataset), read_json(file), file))


def _labels(source: Path, official: RawDataset | None) -> dict[str, str]:
    table = label_table(official.labels, description_file(source)) if official is not None else {}
    return {"0": "background"} | {str(label): name for label, name in (table or _LABELS).items()}


def _official_validation(images: Sequence[RawImage], source: Path, official: RawDataset | None) -> list[Pair]:
    """The challenge's validation pairs: those of its description, else those of people 0006, 0007 and 0008."""
    pairs = [Pair(*(f"AbdomenMRCT_{person}_{m:04d}" for m in (MR, CT))) for person in _OFFICIAL_VALIDATION]
    if official is not None and official.registration_val:
        file = description_file(source)
        listed = [
            cast(RawPair, validated(TypeAdapter(RawPair), entry, file, "registration_val", position))
            for position, entry in enumerate(official.registration_val)
        ]
        pairs = [Pair(_case(pair.fixed), _case(pair.moving)) for pair in listed]
    missing = sorted({name for pair in pairs for name in (pair.fixed, pair.moving)} - {image.name for image in images})
    if missing:
        raise UserError(
            f"{source / 'imagesTr' / missing[0]}.nii.gz of the official validation pairs does not exist: unpack the "
            "whole download, or use --protocol paper."
        )
    return pairs


def _case(path: str) -> str:
    return Path(path).name.removesuffix(".nii.gz")


def _both_images(images: Sequence[RawImage]) -> list[Pair]:
    """The pair of each person who has both images."""
    ct = {image.subject: image.name for image in images if image.modality == CT}
    return [Pair(i.name, ct[i.subject]) for i in images if i.modality == MR and i.subject in ct]
