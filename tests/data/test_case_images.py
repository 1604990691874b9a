"""Users' files that are not as they should be, and the error that each gets."""

from __future__ import annotations

import gzip
import logging
import os
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from llmreg.data.case_images import BadCases, check_case, read_case, verify_dataset_integrity
from llmreg.data.dataset import Case, Dataset, load_dataset
from llmreg.errors import BadImage, MissingFile

LABELS = {1: "liver", 2: "spleen"}
SPACING = (1.0, 1.5, 2.0)
# Format and offset of some fields of a NIfTI header.
DIM, PIXDIM, SLOPE, UNITS = ("8h", 40), ("8f", 76), ("2f", 112), ("b", 123)
CODES, QFORM, SFORM = ("2h", 252), ("6f", 256), ("12f", 280)


def save(
    path: Path, values: np.ndarray, spacing: tuple[float, ...] = SPACING, shift: float = 0.0, vector: bool = False
) -> None:
    image = sitk.GetImageFromArray(values, isVector=vector)
    image.SetSpacing((*spacing, 1.0, 1.0)[: image.GetDimension()])
    image.SetOrigin([shift] * image.GetDimension())
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def edit(path: Path, *edits: tuple[tuple[str, int], Any], more: int = 0) -> None:
    """Change fields of a NIfTI header, or put ``more`` bytes behind the voxels."""
    content = bytearray(gzip.decompress(path.read_bytes())) + bytes(more)
    for (kind, at), values in edits:
        struct.pack_into("<" + kind, content, at, *values)
    path.write_bytes(gzip.compress(content))


def noise(size: tuple[int, ...] = (9, 10, 11)) -> np.ndarray:
    return np.random.default_rng(0).normal(size=size).astype(np.float32)


def ct() -> np.ndarray:
    """Soft tissue in air, HU."""
    values = np.random.default_rng(1).normal(-1000, 10, (9, 10, 11))
    values[2:7, 2:8, 2:9] += 1040
    return values.round().astype(np.int16)


def structures() -> np.ndarray:
    values = np.zeros((9, 10, 11), np.uint8)
    values[2:5, 2:5, 2:5], values[6:, 6:, 6:] = 1, 2
    return values


@pytest.fixture
def case(tmp_path: Path) -> Case:
    image, label = (tmp_path / f"{kind}/Toy_0001_0000.nii.gz" for kind in ("imagesTr", "labelsTr"))
    save(image, noise())
    save(label, structures())
    return Case("Toy_0001_0000", "0001", 0, image, label)


def label_of(case: Case) -> Path:
    assert case.label is not None
    return case.label


def noise_with_value(value: float) -> np.ndarray:
    values = noise()
    values[1, 2, 3] = value
    return values


def shorten(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))


def turn_into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def flip(path: Path) -> None:
    image = sitk.ReadImage(str(path))
    image.SetDirection([-1, 0, 0, 0, -1, 0, 0, 0, 1])
    sitk.WriteImage(image, str(path))


def test_a_sound_case_is_read(case: Case) -> None:
    assert check_case(case, LABELS) == []
    assert check_case(replace(case, label=None), {}) == []
    images = read_case(replace(case, mask=case.label), LABELS)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(images.image), noise())
    for other in (images.label, images.mask):
        np.testing.assert_array_equal(sitk.GetArrayFromImage(other), structures())


UNSIGNED = "negative numbers .* unsigned type: .*signed 16-bit"
UNITS_WRONG = "metres or micrometres"
NO_GRID = "sheared.*zeros"
NAN = "NaN or infinite"
IMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (lambda p: p.unlink(), "does not exist"),
    "folder": (turn_into_folder, "is a folder.*DICOM"),
    "no bytes": (lambda p: p.write_bytes(b""), r"empty \(0 bytes\)"),
    "no bytes, compressed": (lambda p: p.write_bytes(gzip.compress(b"")), r"empty \(0 bytes\)"),
    "not an image": (lambda p: p.write_bytes(b"no"), "cannot be read"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:2000]), "truncated or damaged"),
    "short": (lambda p: shorten(p), r"truncated \(1 bytes"),
    "2-D": (
        lambda p: save(p, noise()[0]),
        r"single slice \(size 11x10\)",
    ),
    "one slice": (lambda p: save(p, noise()[:1]), r"single slice \(size 11x10x1\)"),
    "one sagittal slice": (lambda p: save(p, noise()[..., :1]), r"single slice \(size 1x10x9\)"),
    "two slices": (
        lambda p: save(p, noise()[:2]),
        "size 11x10x2.* 4 voxels",
    ),
    "time series": (
        lambda p: save(p, noise((5, 9, 10, 11))),
        "5 volumes of 11x10x9",
    ),
    "channels of a time series": (
        lambda p: edit(p, (DIM, (5, 11, 10, 9, 2, 3, 1, 1)), more=5 * 4 * 990),
        "6 volumes of 11x10x9",
    ),
    "channel in front": (
        lambda p: save(p, noise((9, 10, 11, 1))),
        "size 1x11x10x9.* length 1",
    ),
    "colours": (
        lambda p: save(p, noise((9, 10, 11, 3)), vector=True),
        "3 values per voxel",
    ),
    "complex": (lambda p: save(p, noise().astype(np.complex64)), "complex numbers.* magnitude"),
    "one value": (lambda p: save(p, noise() * 0 + 7), r"empty.* 7\.0"),
    "NaN": (lambda p: save(p, noise_with_value(np.nan)), NAN),
    "infinite": (lambda p: save(p, noise_with_value(-np.inf)), NAN),
    "infinite once scaled": (lambda p: edit(p, (SLOPE, (1e38, 0))), NAN),
    "CT in unsigned numbers": (lambda p: save(p, ct().astype(np.uint16)), f"from 64.*{UNSIGNED}"),
    "CT that was unsigned once": (lambda p: save(p, ct().astype(np.uint16).astype(np.float32)), UNSIGNED),
    "MR beyond 16 bits": (
        lambda p: save(p, (np.abs(noise()) * 12000).astype(np.uint16).view(np.int16)),
        "above 32767 .*unsigned 16-bit",
    ),
    "CT in unsigned 32 bits": (
        lambda p: save(p, ct().astype(np.uint32)),
        r"up to 4\.29e\+09",
    ),
    "lowest float for padding": (lambda p: save(p, noise_with_value(-3e38)), r"up to 3e\+38"),
    "spacing 1000": (lambda p: save(p, noise(), (1000,) * 3), f"1000x1000x1000 mm.*{UNITS_WRONG}"),
    "spacing 0.001": (
        lambda p: save(p, noise(), (0.001,) * 3),
        rf"0\.001x0\.001x0\.001 mm .* 0\.011x0\.01x0\.009 mm.*{UNITS_WRONG}",
    ),
    "slices in metres": (lambda p: save(p, noise(), (1.0, 1.0, 0.003)), UNITS_WRONG),
    "slices in micrometres": (lambda p: save(p, noise(), (1.0, 1.0, 100.0)), UNITS_WRONG),
    "header in metres": (lambda p: edit(p, (UNITS, (1,))), f"1000x1500x2000 mm.*{UNITS_WRONG}"),
    "header in micrometres": (lambda p: edit(p, (UNITS, (3,))), rf"0\.001x0\.0015x0\.002.*{UNITS_WRONG}"),
    "spacing 0": (
        lambda p: edit(p, (PIXDIM, (1, 1, 1.5, 0, 0, 0, 0, 0))),
        r"voxel size 1x1\.5x0",
    ),
    "spacing negative": (
        lambda p: edit(p, (PIXDIM, (1, -1, 1.5, 2, 0, 0, 0, 0))),
        r"voxel size -1x1\.5x2",
    ),
    "spacing NaN": (
        lambda p: edit(p, (PIXDIM, (1, 1, np.nan, 2, 0, 0, 0, 0))),
        "voxel size 1xnanx2",
    ),
    "sheared": (lambda p: edit(p, (CODES, (0, 1)), (SFORM, (1, 0.4, 0, 0, 0, 1.5, 0, 0, 0, 0, 2, 0))), NO_GRID),
    "sform of zeros": (lambda p: edit(p, (CODES, (0, 1)), (SFORM, (0,) * 12)), NO_GRID),
    "two equal axes": (lambda p: edit(p, (CODES, (0, 1)), (SFORM, (1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0))), NO_GRID),
    "sform NaN": (
        lambda p: edit(p, (CODES, (1, 1)), (SFORM, (np.nan,) * 12)),
        "NaN in the position",
    ),
    "qform NaN": (
        lambda p: edit(p, (CODES, (1, 0)), (QFORM, (np.nan, 0, 0, 0, 0, 0))),
        "NaN in the position",
    ),
}
GRID = "not on the grid .*Toy_0001_0000.nii.gz"
NEAREST = ".*nearest neighbours"
HEADER = "give it the image's header.*"
MAPS: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (lambda p: p.unlink(), "does not exist"),
    "NaN": (lambda p: save(p, noise_with_value(np.nan)), NAN),
    "a part of the image": (
        lambda p: save(p, structures()[1:]),
        rf"{GRID} \(size 11x10x8 instead of 11x10x9\): {NEAREST}",
    ),
    "more than the image": (
        lambda p: save(p, np.pad(structures(), 3), shift=-3.0),
        rf"{GRID} \(size 17x16x15 instead of 11x10x9\): {NEAREST}",
    ),
    "no spacing": (
        lambda p: save(p, structures(), (1, 1, 1)),
        rf"{GRID} \(spacing 1x1x1 instead of 1x1.5x2\): {HEADER} {NEAREST}",
    ),
    "shifted by half a voxel": (
        lambda p: save(p, structures(), shift=0.5),
        rf"{GRID} \(origin 0\.5x0\.5x0\.5 instead of 0x0x0\)",
    ),
    "another place": (
        lambda p: save(p, structures(), shift=40.0),
        rf"outside .*Toy_0001_0000.nii.gz \(origin 40x40x40 .*\): {HEADER}list the one",
    ),
    "another place and size": (
        lambda p: save(p, structures()[1:], shift=-40.0),
        r"outside .* \(size .*\): list the one",
    ),
    "flipped": (flip, rf"outside .* \(direction .*\): {HEADER}"),
}
LABEL_MAPS: dict[str, tuple[Callable[[Path], None], str]] = {
    "unknown": (
        lambda p: save(p, structures() * 3),
        "label 3, 6, .*'labels'",
    ),
    "interpolated": (
        lambda p: save(p, structures() * np.float32(0.5)),
        r"no label ids \(0\.5\)",
    ),
    "id 200 in signed 8 bits": (
        lambda p: save(p, np.where(structures() == 2, np.uint8(200), structures()).view(np.int8)),
        "negative label -56.* unsigned",
    ),
}


def assert_matches(sentence: str, problem: str) -> None:
    assert re.search(sentence, problem), problem


def sentence_of(path: Path, case: Case) -> str:
    """Return the one sentence about a case; its error must carry the file, what is wrong and what to do."""
    (problem,) = check_case(case, LABELS)
    with pytest.raises(type(problem)) as raised:
        read_case(case, LABELS)
    assert isinstance(problem, BadImage | MissingFile)
    for error in (problem, raised.value):
        assert vars(error) == vars(problem)
        assert error.path == path
    assert problem.remedy
    assert ". " not in problem.remedy
    assert "\n" not in str(problem)
    return str(problem)


@pytest.mark.parametrize("mistake", IMAGES)
def test_an_image_that_cannot_be_used(case: Case, mistake: str) -> None:
    spoil, sentence = IMAGES[mistake]
    spoil(case.image)
    assert_matches(sentence, sentence_of(case.image, case))


@pytest.mark.parametrize("mistake", MAPS | LABEL_MAPS)
def test_a_label_map_that_cannot_be_used(case: Case, mistake: str) -> None:
    spoil, sentence = (MAPS | LABEL_MAPS)[mistake]
    spoil(label_of(case))
    assert_matches(sentence, sentence_of(label_of(case), case))


@pytest.mark.parametrize("mistake", MAPS)
def test_a_mask_that_cannot_be_used(case: Case, tmp_path: Path, mistake: str) -> None:
    spoil, sentence = MAPS[mistake]
    mask = tmp_path / "masksTr/Toy_0001_0000.nii.gz"
    save(mask, structures())
    spoil(mask)
    assert_matches(sentence, sentence_of(mask, replace(case, mask=mask)))


def bright_corner(values: np.ndarray, value: int) -> np.ndarray:
    values[:3, :3, :3] = value
    return values


GOOD: dict[str, Callable[[Path], None]] = {
    "a fourth axis of length 1": lambda p: edit(p, (DIM, (4, 11, 10, 9, 1, 1, 1, 1))),
    "a fifth, too": lambda p: edit(p, (DIM, (5, 11, 10, 9, 1, 1, 1, 1))),
    "one component": lambda p: edit(p, (DIM, (5, 11, 10, 9, 1, 1, 1, 1)), (("h", 68), (1007,))),
    "thick slices": lambda p: save(p, noise(), (0.5, 0.5, 10.0)),
    "micro-CT of a mouse": lambda p: save(p, noise((4, 5, 110)), (0.02, 0.02, 0.02)),
    "head to foot": lambda p: save(p, noise((400, 4, 5)), (4.0, 4.0, 5.0)),
    "CT": lambda p: save(p, ct()),
    "CT without air, unsigned": lambda p: save(p, (ct() + 1100).astype(np.uint16)),
    "CT with a padding of -32768": lambda p: save(p, bright_corner(ct(), -32768)),
    "CT with metal": lambda p: save(p, bright_corner(ct(), 30710)),
    "MR scaled to 16 bits": lambda p: save(p, np.linspace(0, 65535, 990).astype(np.uint16).reshape(9, 10, 11)),
    "MR scaled to signed 16 bits": lambda p: save(
        p, np.linspace(-32768, 32767, 990).astype(np.int16).reshape(9, 10, 11)
    ),
    "MR marked with the highest value": lambda p: save(
        p, bright_corner((np.abs(noise()) * 900).astype(np.uint16), 65535)
    ),
    "PET in Bq/ml": lambda p: save(p, np.abs(noise()) * np.float32(1e8)),
    "qform alone": lambda p: edit(p, (CODES, (1, 0)), (SFORM, (np.nan,) * 12)),
    "sform alone": lambda p: edit(p, (CODES, (0, 1)), (QFORM, (np.nan,) * 6)),
    "directions rounded": lambda p: edit(p, (SFORM, (-1, 1e-4, 0, 0, 0, -1.5, 0, 0, 0, 0, 2, 0))),
}


@pytest.mark.parametrize("kind", GOOD)
def test_an_unusual_image_that_is_sound(case: Case, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    before = case.image.read_bytes()
    GOOD[kind](case.image)
    assert case.image.read_bytes() != before
    image = read_case(replace(case, label=None), {}).image
    assert (image.GetDimension(), image.GetNumberOfComponentsPerPixel()) == (3, 1)
    assert not image.GetPixelIDTypeAsString().startswith("vector")
    assert not caplog.records


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.uint32, np.int64, np.float32, np.float64])
def test_label_ids_may_be_stored_in_any_type(case: Case, kind: type) -> None:
    save(label_of(case), structures().astype(kind))
    assert check_case(case, LABELS) == []


def test_headers_rounded_differently_are_no_difference(case: Case) -> None:
    save(label_of(case), structures(), spacing=(1.0 + 1e-7, 1.5, 2.0), shift=1e-6)
    assert check_case(case, LABELS) == []


def test_labels_outside_those_announced(case: Case) -> None:
    assert check_case(replace(case, annotated_labels=(1, 2)), LABELS) == []
    assert_matches(
        "label 2, .*'annotated_labels'",
        sentence_of(label_of(case), replace(case, annotated_labels=(1,))),
    )


def test_every_problem_of_a_case_is_listed(case: Case) -> None:
    save(case.image, noise() * 0)
    save(label_of(case), (structures() * np.uint8(100)).view(np.int8), shift=40.0)
    problems = check_case(case, LABELS)
    for sentence, problem in zip(("is empty", "lies outside", "negative", "label 100"), problems, strict=True):
        assert_matches(sentence, str(problem))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    return [record.getMessage() for record in caplog.records]


UNPLACED = "neither qform nor sform"


def test_a_header_without_direction_is_named_once(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    for path in (case.image, label_of(case)):
        edit(path, (CODES, (0, 0)))
    for _ in range(2):
        images = read_case(case, LABELS)
    # ITK's identity is what the sentence says: left, posterior, superior.
    assert sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(images.image.GetDirection()) == "LPS"
    sentences = warnings(caplog)
    assert len(sentences) == 2
    for path, sentence in zip((case.image, label_of(case)), sentences, strict=True):
        assert_matches(f"^{path} .*{UNPLACED}", sentence)


def test_the_remedy_for_a_header_without_direction(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    edit(case.image, (CODES, (0, 0)))
    image = sitk.ReadImage(str(case.image))
    image.SetDirection([-1, 0, 0, 0, 1, 0, 0, 0, -1])
    # Other formats keep the NIfTI header's codes as notes, which say nothing about their own direction.
    for name in ("mended.nii.gz", "mended.mha", "mended.nrrd"):
        sitk.WriteImage(image, str(case.image.parent / name))
        read_case(replace(case, image=case.image.parent / name, label=None), {})
    assert not caplog.records


@pytest.mark.parametrize(
    ("edits", "apart"),
    [
        ([(SFORM, (-3, 0, 0, 0, 0, -1.5, 0, 0, 0, 0, 2, 0))], 22),  # 11 voxels of 1 mm by pixdim, of 3 mm by the sform
        ([(PIXDIM, (1, 1, 1.5, 4, 0, 0, 0, 0))], 18),
        ([(SFORM, (-1, 0.4, 0, 0, 0, -1.5, 0, 0, 0, 0, 2, 0))], 4),  # Sheared: ITK turns to the qform.
        (
            [
                (UNITS, (1,)),
                (PIXDIM, (1, 1e-3, 1.5e-3, 4e-3, 0, 0, 0, 0)),
                (SFORM, (-1e-3, 0, 0, 0, 0, -1.5e-3, 0, 0, 0, 0, 2e-3, 0)),
            ],
            18,
        ),
    ],
)
def test_an_sform_that_is_not_followed_is_named(
    case: Case, caplog: pytest.LogCaptureFixture, edits: list[Any], apart: int
) -> None:
    edit(case.image, *edits)
    read_case(replace(case, label=None), {})
    (sentence,) = warnings(caplog)
    assert_matches(f"^{case.image} .*sform .* {apart} mm", sentence)


def test_an_empty_label_map_is_named_unless_its_labels_are_announced(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    save(label_of(case), structures() * 0)
    read_case(replace(case, annotated_labels=(1,)), LABELS)
    assert not caplog.records
    for _ in range(2):
        read_case(case, LABELS)
    (sentence,) = warnings(caplog)
    assert_matches(f"^{label_of(case)} holds no label", sentence)


SHARED = Path(os.environ.get("LLMREG_SHARED", Path(__file__).parents[2] / "shared"))


def dataset_of(folder: Path, number: int) -> Dataset:
    """Write a dataset of people, each with noise for an image and one structure."""
    cases = []
    for subject in range(number):
        name = f"Toy_{subject:04d}_0000"
        image, label = (folder / f"{kind}/{name}.nii.gz" for kind in ("imagesTr", "labelsTr"))
        save(image, np.random.default_rng(subject).normal(size=(9, 10, 11)).astype(np.float32))
        save(label, np.pad(np.ones((3, 4, 5), np.uint8), 3))
        cases.append(Case(name, f"{subject:04d}", 0, image, label))
    return Dataset("Dataset009_Toy", folder, {0: "MR"}, {1: "liver"}, 0, 0, "inter_subject", tuple(cases))


@pytest.mark.parametrize("processes", [1, 2])
def test_whole_dataset(tmp_path: Path, caplog: pytest.LogCaptureFixture, processes: int) -> None:
    dataset = dataset_of(tmp_path, 3)
    verify_dataset_integrity(dataset, processes)
    label = dataset.cases[1].label
    assert label is not None
    save(label, np.pad(np.full((3, 4, 5), 3, np.uint8), 3))
    dataset.cases[2].image.unlink()
    with pytest.raises(BadCases, match=r"Toy_0001_0000.* label 3.* 1 more") as raised:
        verify_dataset_integrity(dataset, processes)
    bad_label, missing = raised.value.problems
    assert isinstance(bad_label, BadImage)
    assert bad_label.path == label
    assert isinstance(missing, MissingFile)
    assert missing.path == dataset.cases[2].image
    assert "Toy_0002_0000" in caplog.text


def test_a_single_problem_is_told_as_it_is(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, 2)
    save(dataset.cases[1].image, np.zeros((9, 10, 11), np.float32))
    with pytest.raises(BadImage) as raised:
        verify_dataset_integrity(dataset, 1)
    (problem,) = check_case(dataset.cases[1], dataset.labels)
    assert vars(raised.value) == vars(problem)


def test_real_case_of_each_modality(caplog: pytest.LogCaptureFixture) -> None:
    folder = SHARED / "data/Dataset002_BrainMRCT"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    dataset = load_dataset(folder)
    caplog.clear()
    for modality in dataset.modalities:
        assert check_case(dataset.of_modality(modality)[0], dataset.labels) == []
    assert not caplog.records
