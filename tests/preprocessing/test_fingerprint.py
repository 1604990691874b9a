"""Measurements on images and label maps are compared with plain loops over their voxels."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from rewritten import recompress

from llmreg.data.dataset import Case, Dataset, Pair
from llmreg.errors import UnreadableFile
from llmreg.files import read_json, write_json
from llmreg.geometry.grid import Grid, array_to_image
from llmreg.images.image_files import write_image
from llmreg.preprocessing import fingerprint as module
from llmreg.preprocessing.fingerprint import (
    PERCENTILES,
    SAMPLED_PAIRS,
    extract_fingerprint,
    measure_case,
    measure_pair,
    read_fingerprint,
    sample_pairs,
)

MODALITIES = {0: "MR", 1: "CT"}
LABELS = {1: "liver", 2: "spleen", 7: "kidney"}
RAS = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)


def write_case(
    folder: Path,
    name: str,
    grid: Grid,
    labels: np.ndarray | None,
    seed: int = 0,
    annotated: tuple[int, ...] | None = None,
) -> Case:
    """Write a case whose image is noise in the middle of zeros."""
    rng = np.random.default_rng(seed)
    values = np.zeros(grid.shape, np.int16)
    values[2:-2, 2:-2, 2:-2] = rng.integers(100, 1000, np.subtract(grid.shape, 4))
    paths = [folder / f"{kind}Tr/{name}.nii.gz" for kind in ("images", "labels")]
    write_image(array_to_image(values, grid), paths[0])
    if labels is not None:
        write_image(array_to_image(labels.astype(np.uint8), grid), paths[1])
    *_, subject, modality = name.split("_")
    return Case(
        name, subject, int(modality), paths[0], None if labels is None else paths[1], annotated_labels=annotated
    )


def boxes(shape: tuple[int, ...]) -> np.ndarray:
    """Make a label map with the structures 1 and 2, and without 7."""
    labels = np.zeros(shape, np.uint8)
    labels[2:5, 3:8, 2:6], labels[5:8, 2:4, 6:11] = 1, 2
    return labels


def dataset_of(cases: list[Case], **changes) -> Dataset:
    content = {
        "name": "Dataset001_Toy",
        "folder": Path("."),
        "modalities": MODALITIES,
        "labels": LABELS,
        "fixed_modality": 0,
        "moving_modality": 1,
        "pairing": "unpaired",
        "cases": tuple(cases),
    }
    return Dataset(**(content | changes))


def test_structures_are_those_of_a_plain_loop(oblique: Grid, tmp_path: Path) -> None:
    labels = np.random.default_rng(1).choice([0, 1, 7], oblique.shape, p=[0.7, 0.2, 0.1])
    case = write_case(tmp_path, "Toy_0001_0000", oblique, labels)
    fingerprint = measure_case(case, MODALITIES, LABELS)
    image = sitk.ReadImage(str(case.image))
    places, values = defaultdict(list), defaultdict(list)
    for z, y, x in np.ndindex(labels.shape):
        places[int(labels[z, y, x])].append(image.TransformIndexToPhysicalPoint((x, y, z)))
        values[int(labels[z, y, x])].append(image[x, y, z])
    assert (
        set(fingerprint.label_volumes)
        == set(fingerprint.label_centroids)
        == set(fingerprint.structure_intensities)
        == {1, 7}
    )
    for label in (1, 7):
        assert fingerprint.label_volumes[label] == pytest.approx(len(places[label]) * 1.0 * 1.5 * 3.0 / 1000)
        assert 1000 * fingerprint.label_volumes[label] / np.prod(fingerprint.spacing) == pytest.approx(
            len(places[label])
        )
        np.testing.assert_allclose(fingerprint.label_centroids[label], np.mean(places[label], axis=0), atol=1e-4)
        np.testing.assert_allclose(
            fingerprint.structure_intensities[label], np.percentile(values[label], PERCENTILES), rtol=1e-6
        )
    np.testing.assert_allclose(fingerprint.intensities, np.percentile(values[1] + values[7], PERCENTILES), rtol=1e-6)
    all_values = np.concatenate(list(values.values()))
    assert fingerprint.range == [all_values.min(), all_values.max()]


def test_headers_that_differ_by_rounding_are_compared(tmp_path: Path) -> None:
    grid = Grid((20, 18, 16), (3.0, 3.0, 3.0), (1.0, 2.0, 3.0), RAS)
    labels = boxes(grid.shape)
    cases = [write_case(tmp_path, f"Toy_000{n}_000{n}", grid, labels) for n in (0, 1)]
    rounded = replace(grid, origin=(1.00001, 2.0, 3.0))
    write_image(array_to_image(labels, rounded), cases[0].label)
    fingerprints = {case.name: measure_case(case, MODALITIES, LABELS) for case in cases}
    pair = Pair(cases[0].name, cases[1].name)
    assert measure_pair(pair, {case.name: case for case in cases}, fingerprints, LABELS).dice == pytest.approx(1)


def test_axes_are_told_as_stored_and_as_turned(tmp_path: Path) -> None:
    # Sagittal slices: the first axis runs down, the second forward, the third to the left.
    grid = Grid((9, 10, 11), (1.0, 2.0, 4.0), (5.0, 6, 7), (0.0, 0, 1, 0, -1, 0, -1, 0, 0))
    fingerprint = measure_case(write_case(tmp_path, "Toy_0001_0000", grid, None), MODALITIES, {})
    assert fingerprint.orientation == "IAL"
    assert (fingerprint.size, fingerprint.spacing) == ([11, 10, 9], pytest.approx([4, 2, 1]))
    assert max(fingerprint.spacing) / min(fingerprint.spacing) == pytest.approx(4)
    turned = Grid.from_dict(fingerprint.grid)
    assert turned.size == (11, 10, 9)
    # Both grids cover the same volume.
    assert grid.share_inside(turned) == turned.share_inside(grid) == 1
    assert (fingerprint.label_volumes, fingerprint.structure_intensities) == ({}, {})


def test_without_labels_the_foreground_is_measured_and_the_mask_where_there_is_one(tmp_path: Path) -> None:
    grid = Grid((20, 18, 16), (3.0, 3.0, 3.0), (1.0, 2.0, 3.0), RAS)
    case = write_case(tmp_path, "Toy_0001_0000", grid, None)
    fingerprint = measure_case(case, MODALITIES, {})
    assert fingerprint.intensities[0] > 90
    np.testing.assert_allclose(fingerprint.foreground_extent, np.array((16, 14, 12)) * 3.0)
    np.testing.assert_allclose(fingerprint.foreground_centre, grid.centre, atol=1e-4)
    drawn = np.zeros(grid.shape, np.uint8)
    drawn[4:6, 4:8, 4:9] = 1
    write_image(array_to_image(drawn, grid), tmp_path / "mask.nii.gz")
    masked = measure_case(replace(case, mask=tmp_path / "mask.nii.gz"), MODALITIES, {})
    values = sitk.GetArrayFromImage(sitk.ReadImage(str(case.image)))
    np.testing.assert_allclose(masked.intensities, np.percentile(values[drawn > 0], PERCENTILES))
    np.testing.assert_allclose(masked.foreground_extent, np.array((5, 4, 2)) * 3.0)


@pytest.mark.parametrize(
    ("spans", "overlap"), [(((3, 17),), 1.0), (((2, 8), (12, 18)), 1.0), (((2, 6), (8, 18)), 6 / 7)]
)
def test_symmetric_anatomy_overlaps_its_mirror_image(tmp_path: Path, spans, overlap: float) -> None:
    grid = Grid((20, 14, 12), (3.0, 3.0, 3.0), (1.0, 2.0, 3.0), RAS)
    labels = np.zeros(grid.shape, np.uint8)
    for start, stop in spans:
        labels[4:9, 4:9, start:stop] = 1
    fingerprint = measure_case(write_case(tmp_path, "Toy_0001_0000", grid, labels), MODALITIES, LABELS)
    assert fingerprint.mirror_overlap == pytest.approx(overlap)


def compare_cases(folder: Path, fixed: Case, moving: Case) -> module.PairFingerprint:
    cases = {case.name: case for case in (fixed, moving)}
    fingerprints = {name: measure_case(case, MODALITIES, LABELS) for name, case in cases.items()}
    return measure_pair(Pair(fixed.name, moving.name), cases, fingerprints, LABELS)


def test_a_pure_shift_is_displacement_without_deformation(oblique: Grid, tmp_path: Path) -> None:
    shifted = Grid(oblique.size, oblique.spacing, tuple(np.add(oblique.origin, (3, -4, 12))), oblique.direction)
    fixed = write_case(tmp_path, "Toy_0001_0000", oblique, boxes(oblique.shape))
    moving = write_case(tmp_path, "Toy_0002_0001", shifted, boxes(oblique.shape))
    fingerprint = compare_cases(tmp_path, fixed, moving)
    assert fingerprint.displacement_mm == pytest.approx(13, abs=1e-3)
    assert fingerprint.deformation_mm == pytest.approx(0, abs=1e-3)
    unmoved = compare_cases(tmp_path, fixed, replace(fixed, name="Toy_0003_0000"))
    assert (
        unmoved.dice,
        unmoved.displacement_mm,
        unmoved.deformation_mm,
        unmoved.field_of_view_overlap,
    ) == pytest.approx((1, 0, 0, 1), abs=1e-6)


def test_the_overlap_is_the_share_of_the_fixed_field_of_view(tmp_path: Path) -> None:
    small, large = (Grid((n, 12, 12), (2.0, 2.0, 2.0), (0.0, 0, 0)) for n in (10, 20))
    inner = write_case(tmp_path, "Toy_0001_0000", small, None)
    outer = write_case(tmp_path, "Toy_0002_0001", large, None)
    assert compare_cases(tmp_path, inner, outer).field_of_view_overlap == pytest.approx(1)
    assert compare_cases(tmp_path, outer, inner).field_of_view_overlap == pytest.approx(0.5, abs=0.05)


def test_structures_that_part_are_deformation_as_well(tmp_path: Path) -> None:
    grid = Grid((20, 16, 14), (2.0, 2.0, 2.0), (0.0, 0, 0))
    near, far = (np.zeros(grid.shape, np.uint8) for _ in range(2))
    near[4:8, 4:8, 4:8], near[4:8, 4:8, 10:14] = 1, 2
    far[4:8, 4:8, 2:6], far[4:8, 4:8, 12:16] = 1, 2
    fixed, moving = (write_case(tmp_path, f"Toy_000{k}_000{k}", grid, labels) for k, labels in enumerate((near, far)))
    fingerprint = compare_cases(tmp_path, fixed, moving)
    assert (fingerprint.displacement_mm, fingerprint.deformation_mm) == pytest.approx((4, 4))
    assert fingerprint.dice == pytest.approx(0.5)
    # A single structure cannot tell a shift from a deformation.
    alone = replace(write_case(tmp_path, "Toy_0005_0001", grid, far * (far == 1)), annotated_labels=(1,))
    fingerprint = compare_cases(tmp_path, fixed, alone)
    assert (fingerprint.displacement_mm, fingerprint.deformation_mm) == (pytest.approx(4), None)
    assert fingerprint.dice == pytest.approx(0.5)
    unlabelled = compare_cases(tmp_path, fixed, replace(moving, label=None))
    assert (unlabelled.dice, unlabelled.displacement_mm, unlabelled.deformation_mm) == (None, None, None)


def test_dice_is_that_of_a_plain_loop_on_another_grid(oblique: Grid, tmp_path: Path) -> None:
    other = Grid((16, 15, 13), (1.3, 1.1, 2.5), tuple(np.add(oblique.origin, (-14, -4, -27))))
    fixed = write_case(tmp_path, "Toy_0001_0000", oblique, boxes(oblique.shape))
    slabs = np.array((0, 2, 1, 7, 7))[np.arange(13) // 3]
    moving = write_case(tmp_path, "Toy_0002_0001", other, np.broadcast_to(slabs[:, None, None], other.shape))
    labels = [sitk.ReadImage(str(case.label)) for case in (fixed, moving)]
    sizes = defaultdict(lambda: np.zeros(3))
    for z, y, x in np.ndindex(oblique.shape):
        index = labels[1].TransformPhysicalPointToIndex(labels[0].TransformIndexToPhysicalPoint((x, y, z)))
        moving_label = labels[1][index] if all(0 <= i < n for i, n in zip(index, other.size, strict=True)) else 0
        fixed_label = labels[0][x, y, z]
        sizes[fixed_label] += (1, 0, fixed_label == moving_label)
        sizes[moving_label] += (0, 1, 0)
    dice = {
        label: 2 * shared / (fixed_size + moving_size)
        for label, (fixed_size, moving_size, shared) in sizes.items()
        if label
    }
    assert set(dice) == {1, 2, 7}
    assert 0 < max(dice.values()) < 1
    assert compare_cases(tmp_path, fixed, moving).dice == pytest.approx(np.mean(list(dice.values())))
    # A structure that was not looked for in one of the images is not missing there.
    partly = replace(fixed, annotated_labels=(1, 2))
    assert compare_cases(tmp_path, partly, moving).dice == pytest.approx((dice[1] + dice[2]) / 2)


@settings(max_examples=25, deadline=None)
@given(
    shift=st.tuples(*[st.floats(-30, 30)] * 3),
    size=st.tuples(*[st.integers(4, 30)] * 3),
    angle=st.integers(-60, 60),
)
def test_the_overlap_of_fields_of_view_is_that_of_random_points(shift, size, angle) -> None:
    angle = np.deg2rad(angle)
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    fixed = Grid((20, 24, 12), (1.5, 1.0, 3.0), (0.0, 0, 0), (0.0, 0, 1, 0, -1, 0, -1, 0, 0))
    moving = Grid(size, (2.0, 1.5, 1.0), tuple(fixed.centre + shift), tuple(turn.ravel().tolist()))
    index = np.random.default_rng(0).uniform(-0.5, np.array(fixed.size) - 0.5, (4000, 3))
    image = sitk.Image(list(size), sitk.sitkUInt8)
    image.SetSpacing(moving.spacing)
    image.SetOrigin(moving.origin)
    image.SetDirection(moving.direction)
    moving_index = np.array(
        [image.TransformPhysicalPointToContinuousIndex(p.tolist()) for p in fixed.index_to_physical(index)]
    )
    share = ((moving_index > -0.5) & (moving_index < np.array(size) - 0.5)).all(axis=1).mean()
    assert fixed.share_inside(moving) == pytest.approx(share, abs=0.06)
    assert fixed.share_inside(fixed) == 1


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Three cases of each modality: 0001_0001 has only its liver annotated, 0002_0001 has no label map."""
    cases = []
    for subject in (1, 2, 3):
        for modality in (0, 1):
            grid = Grid((14, 12, 10), (2.0, 2.0, 2.0 + modality), (subject, 0.0, 0.0), RAS)
            labels = boxes(grid.shape)
            annotated = (1,) if (subject, modality) == (1, 1) else None
            labels = labels * (labels < 2) if annotated else labels
            drawn = None if (subject, modality) == (2, 1) else labels
            cases.append(write_case(tmp_path, f"Toy_{subject:04d}_{modality:04d}", grid, drawn, subject, annotated))
    return dataset_of(cases)


class Spy:
    """A record of the cases and pairs that are measured."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cases: list[str] = []
        self.pairs: list[tuple[str, str]] = []

        def record_case(case, **options):
            self.cases.append(case.name)
            return measure_case(case, **options)

        def record_pair(pair, **options):
            self.pairs.append((pair.fixed, pair.moving))
            return measure_pair(pair, **options)

        monkeypatch.setattr(module, "measure_case", record_case)
        monkeypatch.setattr(module, "measure_pair", record_pair)


def test_only_what_changed_is_read_again(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = extract_fingerprint(dataset, 1)
    spy = Spy(monkeypatch)
    assert extract_fingerprint(dataset, 1, earlier) == earlier
    assert (spy.cases, spy.pairs) == ([], [])
    changed = dataset.case("Toy_0003_0001")
    labels = sitk.ReadImage(str(changed.label))
    write_image(labels * (labels != 2), changed.label)
    again = extract_fingerprint(dataset, 1, earlier)
    assert spy.cases == ["Toy_0003_0001"]
    assert {"Toy_0003_0001"} == set.intersection(*map(set, spy.pairs))
    assert len(spy.pairs) == 3
    assert again == extract_fingerprint(dataset, 1)
    assert again != earlier
    assert 2 not in again.cases[-1].label_volumes


def test_a_rewritten_image_an_added_label_map_or_a_mask_is_read_again(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = extract_fingerprint(dataset, 1)
    spy = Spy(monkeypatch)
    rewritten, lacking, masked = (dataset.case(f"Toy_{name}") for name in ("0001_0000", "0002_0001", "0003_0000"))
    recompress(rewritten.image)
    changes = {
        lacking.name: replace(
            lacking, label=dataset.case("Toy_0003_0001").label, image=dataset.case("Toy_0003_0001").image
        ),
        masked.name: replace(masked, mask=masked.label),
    }
    other = replace(dataset, cases=tuple(changes.get(case.name, case) for case in dataset.cases))
    extract_fingerprint(other, 1, earlier)
    assert spy.cases == [rewritten.name, lacking.name, masked.name]


@pytest.mark.parametrize("change", [{"labels": LABELS | {9: "lung"}}, {"modalities": {0: "MR", 1: "PET"}}])
def test_other_tables_read_everything_again(dataset: Dataset, monkeypatch: pytest.MonkeyPatch, change: dict) -> None:
    earlier = extract_fingerprint(dataset, 1)
    spy = Spy(monkeypatch)
    again = extract_fingerprint(replace(dataset, **change), 1, earlier)
    assert spy.cases == [case.name for case in dataset.cases]
    assert again == extract_fingerprint(replace(dataset, **change), 1)


def test_what_was_annotated_is_no_less_a_change(dataset: Dataset) -> None:
    earlier = extract_fingerprint(dataset, 1)
    cases = tuple(replace(case, annotated_labels=None) for case in dataset.cases)
    reannotated = replace(dataset, cases=cases)
    # The spleen of 0001_0001 is missing now, no longer unknown.
    assert extract_fingerprint(reannotated, 1, earlier) == extract_fingerprint(reannotated, 1) != earlier


def test_cases_that_are_gone_are_forgotten(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = extract_fingerprint(dataset, 1)
    spy = Spy(monkeypatch)
    fewer = replace(dataset, cases=dataset.cases[2:])
    again = extract_fingerprint(fewer, 1, earlier)
    assert (spy.cases, spy.pairs) == ([], [])
    assert [case.case for case in again.cases] == [case.name for case in fewer.cases]
    assert again == extract_fingerprint(fewer, 1)


def test_shares_are_those_of_the_cases_that_may_be_trained_on(dataset: Dataset) -> None:
    fingerprint = extract_fingerprint(dataset, 1)
    assert fingerprint.annotated_cases == pytest.approx(5 / 6)
    assert fingerprint.annotated_structures == pytest.approx({1: 5 / 6, 2: 4 / 6, 7: 4 / 6})
    assert fingerprint.subjects == {0: 3, 1: 3}
    assert fingerprint.anisotropy == pytest.approx({0: 1, 1: 1.5})
    assert fingerprint.structure_voxels == pytest.approx({1: 60, 2: 30})
    with_held_out = replace(dataset, held_out=frozenset(("Toy_0002_0000", "Toy_0002_0001", "Toy_0001_0001")))
    fingerprint = extract_fingerprint(with_held_out, 1)
    assert (fingerprint.annotated_cases, set(fingerprint.annotated_structures.values())) == (1, {1})
    assert {name for pair in fingerprint.pairs for name in (pair.fixed, pair.moving)}.isdisjoint(with_held_out.held_out)


def test_a_dataset_that_holds_out_every_case_has_a_fingerprint(dataset: Dataset) -> None:
    nobody = replace(dataset, held_out=frozenset(case.name for case in dataset.cases))
    fingerprint = extract_fingerprint(nobody, 1)
    assert (fingerprint.annotated_cases, fingerprint.pairs) == (0, [])


def make_unread_dataset(subjects: int, labelled: int, **changes) -> Dataset:
    """Make a dataset whose files nobody opens; the first ``labelled`` subjects have label maps."""
    cases = [
        Case(f"Toy_{s:04d}_{m:04d}", f"{s:04d}", m, Path("i"), Path("l") if s < labelled else None)
        for s in range(subjects)
        for m in (0, 1)
    ]
    return dataset_of(cases, **changes)


@given(subjects=st.integers(1, 12), labelled=st.integers(0, 12), num_held_out=st.integers(0, 3))
def test_pairs_are_always_the_same_and_those_with_labels_first(subjects: int, labelled: int, num_held_out: int) -> None:
    held_out = frozenset(f"Toy_{s:04d}_{m:04d}" for s in range(num_held_out) for m in (0, 1))
    dataset = make_unread_dataset(subjects, labelled, held_out=held_out)
    pairs = sample_pairs(dataset)
    assert pairs == sample_pairs(make_unread_dataset(subjects, labelled, held_out=held_out))
    usable = max(subjects - num_held_out, 0)
    with_labels = max(min(subjects, labelled) - num_held_out, 0)
    assert len(set(pairs)) == len(pairs) == min(SAMPLED_PAIRS, (with_labels or usable) ** 2)
    names = {name for pair in pairs for name in (pair.fixed, pair.moving)}
    assert not names & held_out
    if with_labels:
        assert all(dataset.case(name).label for name in names)


def test_it_round_trips_through_its_file(dataset: Dataset, tmp_path: Path) -> None:
    fingerprint = extract_fingerprint(dataset, 1)
    (tmp_path / "f.json").write_text(fingerprint.model_dump_json())
    assert read_fingerprint(tmp_path / "f.json") == fingerprint


@pytest.mark.parametrize("missing_key", ["annotated_cases", "pairs", "cases"])
def test_a_file_of_another_version_is_one_sentence(dataset: Dataset, tmp_path: Path, missing_key: str) -> None:
    path = tmp_path / "f.json"
    path.write_text(extract_fingerprint(replace(dataset, cases=dataset.cases[:2]), 1).model_dump_json())
    content = read_json(path)
    del content[missing_key]
    write_json(path, content)
    with pytest.raises(UnreadableFile, match=missing_key) as raised:
        read_fingerprint(path)
    assert raised.value.path == path
