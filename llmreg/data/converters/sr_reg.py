"""SR-Reg, MambaMorph's brains: 180 subjects with aligned MR and CT and one segmentation for both."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from tqdm import tqdm

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
from llmreg.data.dataset_json import validate
from llmreg.errors import BadDownload, UnreadableFile
from llmreg.files import read_json
from llmreg.geometry.grid import image_to_array
from llmreg.images.formats import DEFAULT_ENDING
from llmreg.images.image_files import read_image
from llmreg.settings import Settings

MR, CT = 0, 1
_STRUCTURES = {
    2: "Left-Cerebral-White-Matter",
    3: "Left-Cerebral-Cortex",
    4: "Left-Lateral-Ventricle",
    5: "Left-Inf-Lat-Vent",
    7: "Left-Cerebellum-White-Matter",
    8: "Left-Cerebellum-Cortex",
    10: "Left-Thalamus",
    11: "Left-Caudate",
    12: "Left-Putamen",
    13: "Left-Pallidum",
    14: "3rd-Ventricle",
    15: "4th-Ventricle",
    16: "Brain-Stem",
    17: "Left-Hippocampus",
    18: "Left-Amygdala",
    24: "CSF",
    26: "Left-Accumbens-area",
    28: "Left-VentralDC",
    41: "Right-Cerebral-White-Matter",
    42: "Right-Cerebral-Cortex",
    43: "Right-Lateral-Ventricle",
    44: "Right-Inf-Lat-Vent",
    46: "Right-Cerebellum-White-Matter",
    47: "Right-Cerebellum-Cortex",
    49: "Right-Thalamus",
    50: "Right-Caudate",
    51: "Right-Putamen",
    52: "Right-Pallidum",
    53: "Right-Hippocampus",
    54: "Right-Amygdala",
    58: "Right-Accumbens-area",
    60: "Right-VentralDC",
}


def structure_name(label: int) -> str:
    """FreeSurfer's name of a structure; the id itself for those that SynthSeg does not segment."""
    return _STRUCTURES.get(label, f"FreeSurfer-{label}")


_NAME, _DEFAULT_ID = "SRReg", 103
# The ends of the names of a subject's files.
_ENDS = {"MR": f"_mr{DEFAULT_ENDING}", "CT": f"_ct{DEFAULT_ENDING}", "segmentation": DEFAULT_ENDING}

PROTOCOL_FILE = "sr_reg.json"
_SUBJECTS, _TEST, _VALIDATION = 180, 20, 10
_SEED = 2401
_NOTE = (
    "A draw of our own of the sizes that MambaMorph (arXiv 2401.13934) and LLM-Morph (arXiv 2408.10703) use: 150 "
    "people to train on, 10 to validate and 20 to test with. Their own lists (train_subj_v2.pkl and so on) are not "
    "published, and the names of all subjects could not be verified, so here are positions: 1 is the first of the 180 "
    "subjects by name. Made by make_protocol() in llmreg/data/converters/sr_reg.py."
)


@dataclass(frozen=True)
class Subject:
    """A subject's files; the segmentation is of both images, which are aligned."""

    name: str
    mr: Path
    ct: Path
    segmentation: Path


@dataclass(frozen=True)
class Division:
    """Names of the subjects that are not trained on."""

    test: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()


class Options(Settings):
    """What the user decides."""

    split: Path | None = Field(
        default=None,
        description="JSON file with 'test' and 'validation', lists of subjects by name, instead of llmreg's own draw",
    )


def convert(source: Path, options: Options, dataset_id: int | None = None) -> Path:
    """Make a raw dataset of the unpacked download.

    Args:
        source: the folder with the images and the segmentations, or with a folder of each.
        options: a JSON file with ``test`` and ``validation``, lists of subjects by name; llmreg's own draw when None.
        dataset_id: 103 when None.

    Returns:
        The dataset's folder.

    Raises:
        BadDownload: the folder is not the download, or a file is missing.
        BadArgument: the id is taken.
    """
    check_download(source)
    target = new_dataset_folder(_DEFAULT_ID if dataset_id is None else dataset_id, _NAME)
    subjects = find_subjects(source)
    division = read_division(options.split, subjects) if options.split else _read_committed_division(subjects, source)
    files = tqdm([subject.segmentation for subject in subjects], "Read labels", unit="file")
    label_ids = set().union(*map(_read_label_ids, files)) - {0}
    number_of = {subject.name: f"{number:04d}" for number, subject in enumerate(subjects, start=1)}
    images = [
        RawImage(f"{_NAME}_{number_of[subject.name]}_{modality:04d}", image, subject.segmentation)
        for subject in subjects
        for modality, image in ((MR, subject.mr), (CT, subject.ct))
    ]

    def pair(moving: str, fixed: str) -> Pair:
        return Pair(f"{_NAME}_{number_of[fixed]}_{CT:04d}", f"{_NAME}_{number_of[moving]}_{MR:04d}")

    write_raw_dataset(
        target,
        images,
        {
            "name": _NAME,
            "description": "SR-Reg of MambaMorph (https://github.com/mileswyn/MambaMorph), made from SynthRAD 2023, "
            "converted by llmreg; CC BY-NC 4.0",
            "subjects": {number: name for name, number in number_of.items()},
            "modality": {str(MR): "MR", str(CT): "CT"},
            "registration_direction": {"fixed": CT, "moving": MR},
            "pairings": "inter_subject",
            "labels": {"0": "background"} | {str(label): structure_name(label) for label in sorted(label_ids)},
        },
        # Each subject is paired with the next one, the last with the first.
        validation=list(map(pair, division.validation, division.validation[1:] + division.validation[:1])),
        test=[pair(*names) for names in mambamorph_pairs(division.test)],
    )
    return target


def find_subjects(source: Path) -> list[Subject]:
    """Find the subjects of a download, by name: ``<subject>_mr.nii.gz``, ``<subject>_ct.nii.gz``, ``<subject>.nii.gz``.

    Raises:
        BadDownload: there are none, a file is missing, or two files have one name.
    """
    files: dict[str, Path] = {}
    for folder in (source, *sorted(path for path in source.iterdir() if path.is_dir())):
        for path in sorted(folder.glob(f"[!.]*{DEFAULT_ENDING}")):
            if path.name in files:
                raise BadDownload(
                    path,
                    f"has the same name as {files[path.name]}",
                    "leave one folder of images and one of segmentations",
                )
            files[path.name] = path
    names = sorted(
        {name.removesuffix(end) for end in (_ENDS["MR"], _ENDS["CT"]) for name in files if name.endswith(end)}
    )
    if not names:
        raise BadDownload(
            source,
            f"and the folders in it hold no <subject>_mr{DEFAULT_ENDING} and <subject>_ct{DEFAULT_ENDING}",
            "give the folder of the unpacked SR-Reg download",
        )
    for name in names:
        for kind, end in _ENDS.items():
            if name + end not in files:
                raise BadDownload(
                    source,
                    f"has no {kind} of subject {name} ({name}{end})",
                    "copy the file, or remove the subject's other files",
                )
    return [Subject(name, *(files[name + end] for end in _ENDS.values())) for name in names]


def make_protocol() -> dict[str, Any]:
    """Draw what ``protocols/sr_reg.json`` holds."""
    # NumPy's older generator, whose numbers will not change.
    order = np.random.RandomState(_SEED).permutation(_SUBJECTS) + 1
    return {
        "note": _NOTE,
        "seed": _SEED,
        "subjects": _SUBJECTS,
        "test": sorted(order[:_TEST].tolist()),
        "validation": sorted(order[_TEST : _TEST + _VALIDATION].tolist()),
    }


def read_division(file: Path, subjects: Sequence[Subject]) -> Division:
    """Read lists of subjects by name, which replace llmreg's own draw.

    Raises:
        UnreadableFile: a name is unknown or listed twice, or the test subjects cannot be paired.
    """
    division = validate(Division, read_json(file), file)
    names = (*division.test, *division.validation)
    existing = {subject.name for subject in subjects}
    for name in names:
        if name not in existing:
            raise UnreadableFile(file, f"names the subject {name}, of whom there are no images", "correct the name")
        if names.count(name) > 1:
            raise UnreadableFile(file, f"names the subject {name} twice", "name each subject in one list only")
    if not division.test or len(division.test) % 2 or len(division.validation) == 1:
        raise UnreadableFile(
            file,
            f"lists {len(division.test)} subjects under 'test' and {len(division.validation)} under 'validation', "
            "which make no pairs",
            "list an even number to test and two or more, or none, to validate with",
        )
    return division


def mambamorph_pairs(subjects: Sequence[str]) -> list[tuple[str, str]]:
    """(moving, fixed) as MambaMorph's ``scripts/torch/test_cross.py`` makes them: permuted and cut into twos."""
    order = np.random.RandomState(0).permutation(len(subjects)).tolist()
    return [(subjects[a], subjects[b]) for a, b in zip(order[::2], order[1::2], strict=True)]


def _read_committed_division(subjects: Sequence[Subject], source: Path) -> Division:
    protocol = read_protocol(PROTOCOL_FILE)
    if len(subjects) != protocol["subjects"]:
        raise BadDownload(
            source,
            f"holds {len(subjects)} subjects, but the protocol divides {protocol['subjects']}",
            "unpack the whole download, or name the subjects to test and validate with in a split file",
        )
    return Division(*(tuple(subjects[p - 1].name for p in protocol[key]) for key in ("test", "validation")))


def _read_label_ids(path: Path) -> set[int]:
    values = np.unique(image_to_array(read_image(path)))
    ids = np.round(values).astype(int)
    if not np.allclose(values, ids) or ids.min() < 0:
        raise UnreadableFile(path, "holds values that are no label ids", "download the segmentation again")
    return set(ids.tolist())


CONVERTERS.register("sr-reg", Converter("SR-Reg of MambaMorph: MR and CT of the brain", Options, "103", convert))
