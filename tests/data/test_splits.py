from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmreg.data.dataset import Case, Dataset, Pair, Pairing, load_dataset, pairs_among
from llmreg.data.splits import (
    ALL,
    MOST_VALIDATION_PAIRS,
    check_splits,
    make_splits,
    parse_fold,
    read_splits,
    split_all,
    write_splits,
)
from llmreg.errors import BadDataset, UnknownName, UnreadableFile, UserError
from llmreg.files import write_json

SHARED = Path(os.environ.get("LLMREG_SHARED", Path(__file__).parents[3] / "shared"))


def toy(
    subjects: list[set[int]],
    pairing: Pairing = "inter_subject",
    unlabelled: frozenset[str] = frozenset(),
    held_out: frozenset[str] = frozenset(),
    explicit: tuple[Pair, ...] = (),
) -> Dataset:
    """Make a dataset in which subject i has images of the modalities ``subjects[i]``."""
    folder = Path("Dataset009_Toy")
    cases = []
    for number, modalities in enumerate(subjects):
        for modality in sorted(modalities):
            name = f"Toy_{number:04d}_{modality:04d}"
            label = None if name in unlabelled else folder / f"labelsTr/{name}.nii.gz"
            cases.append(Case(name, f"{number:04d}", modality, folder / f"imagesTr/{name}.nii.gz", label))
    return Dataset(
        folder.name,
        folder,
        {0: "MR", 1: "CT"},
        {1: "liver"},
        0,
        1,
        pairing,
        tuple(cases),
        explicit_pairs=explicit,
        held_out=held_out,
    )


def subjects_of(dataset: Dataset, names: tuple[str, ...]) -> set[str]:
    return {dataset.case(name).subject for name in names}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([{0}, {1}, {0, 1}]), min_size=4, max_size=16),
    st.sampled_from(["inter_subject", "unpaired", "intra_subject"]),
    st.integers(2, 6),
    st.integers(0, 3),
)
def test_no_subject_is_on_both_sides(subjects: list[set[int]], pairing: Pairing, folds: int, seed: int) -> None:
    dataset = toy(subjects, pairing)
    try:
        splits = make_splits(dataset, folds, seed)
    except UserError:
        return
    assert make_splits(dataset, folds, seed) == splits
    if not splits:
        # Nobody can be held out, because one subject at most has one of the modalities, or both of them.
        paired = subjects.count({0, 1})
        fewest = min(sum(modality in modalities for modalities in subjects) for modality in (0, 1))
        assert (paired if pairing == "intra_subject" else fewest) < 2
        return
    assert 2 <= len(splits) <= folds
    everyone = {case.name for case in dataset.cases}
    validated: list[str] = []
    for number, split in enumerate(splits):
        assert split.fold == number
        assert not subjects_of(dataset, split.train) & subjects_of(dataset, split.validation)
        assert set(split.train) | set(split.validation) | set(split.atlas) == everyone
        assert len(split.train) + len(split.validation) + len(split.atlas) == len(everyone)
        assert set(split.training_cases) == everyone - set(split.validation)
        assert split.validation
        for pair in split.validation_pairs:
            assert {pair.fixed, pair.moving} & set(split.validation)
        validated += split.validation
    assert len(validated) == len(set(validated))


def test_small_modality_is_an_atlas(caplog: pytest.LogCaptureFixture) -> None:
    dataset = toy([{0}] * 7 + [{1}] * 2, "unpaired")
    with caplog.at_level("INFO"):
        splits = make_splits(dataset)
    assert "atlas" in caplog.text
    assert len(splits) == 5
    for split in splits:
        assert split.atlas == ("Toy_0007_0001", "Toy_0008_0001")
        assert len(split.validation_pairs) == 2 * len(split.validation)
    assert sorted(name for split in splits for name in split.validation) == [f"Toy_{i:04d}_0000" for i in range(7)]


def test_atlas_subjects_are_never_validated() -> None:
    splits = make_splits(toy([{0, 1}, {0, 1}] + [{0}] * 6), folds=3)
    for split in splits:
        assert split.atlas == ("Toy_0000_0001", "Toy_0001_0001")
        assert not {"Toy_0000_0000", "Toy_0001_0000"} & set(split.validation)


def test_both_modalities_reach_every_fold_when_subjects_differ() -> None:
    for split in make_splits(toy([{0}] * 6 + [{1}] * 6, "unpaired")):
        assert {name[-4:] for name in split.validation} == {"0000", "0001"}
        assert split.validation_pairs


def test_few_subjects_make_fewer_folds(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        splits = make_splits(toy([{0, 1}] * 3))
    assert len(splits) == 3
    assert "3 are made" in caplog.text
    for split in splits:
        # The only validated subject has partners in training alone.
        assert len(split.validation_pairs) == 4
    assert make_splits(toy([{0, 1}])) == ()
    assert "too few subjects" in caplog.text
    with pytest.raises(UserError, match="all"):
        parse_fold("0", range(0))


def test_intra_subject_counts_paired_subjects() -> None:
    splits = make_splits(toy([{0, 1}] * 3 + [{0}] * 9, "intra_subject"))
    assert len(splits) == 3
    assert [len(split.validation_pairs) for split in splits] == [1, 1, 1]
    assert all(not split.atlas for split in splits)


def test_explicit_pairs() -> None:
    pairs = tuple(Pair(f"Toy_{i:04d}_0000", f"Toy_{i:04d}_0001") for i in range(6))
    splits = make_splits(toy([{0, 1}] * 6, "explicit", explicit=pairs), folds=3)
    validation_pairs = sorted((pair.fixed, pair.moving) for split in splits for pair in split.validation_pairs)
    assert validation_pairs == [(pair.fixed, pair.moving) for pair in pairs]


def test_pairs_are_thinned_reproducibly_and_in_order() -> None:
    dataset = toy([{0, 1}] * 30)
    split = make_splits(dataset, folds=2)[0]
    candidates = pairs_among(dataset, split.validation)
    assert len(candidates) == 15 * 14
    assert len(split.validation_pairs) == MOST_VALIDATION_PAIRS
    positions = [candidates.index(pair) for pair in split.validation_pairs]
    assert positions == sorted(set(positions))
    assert make_splits(dataset, folds=2, seed=1)[0].validation_pairs != split.validation_pairs


def test_unlabelled_cases_are_not_validated_on() -> None:
    unlabelled = frozenset({"Toy_0000_0000", "Toy_0003_0001"})
    for split in make_splits(toy([{0, 1}] * 10, unlabelled=unlabelled), folds=2):
        assert not unlabelled & {name for p in split.validation_pairs for name in (p.fixed, p.moving)}
        assert unlabelled & {*split.train, *split.validation}
    all_names = frozenset(f"Toy_{i:04d}_{m:04d}" for i in range(10) for m in (0, 1))
    assert all(split.validation_pairs for split in make_splits(toy([{0, 1}] * 10, unlabelled=all_names), folds=2))


def test_held_out_subjects_are_never_used() -> None:
    dataset = toy([{0, 1}] * 8, held_out=frozenset({"Toy_0002_0000", "Toy_0002_0001"}))
    for split in (*make_splits(dataset), split_all(dataset)):
        assert "0002" not in subjects_of(dataset, split.train + split.validation + split.atlas)
    with pytest.raises(BadDataset, match="registration_val"):
        make_splits(toy([{0}, {0}, {1}], "unpaired", held_out=frozenset({"Toy_0002_0001"})))


def test_no_image_of_a_tested_person_is_used(tmp_path: Path) -> None:
    """A person's third image is left out too, which ``registration_val`` does not name."""
    folder = tmp_path / "Dataset009_Toy"
    (folder / "imagesTr").mkdir(parents=True)
    names = [f"imagesTr/Toy_{subject:04d}_{modality:04d}.nii.gz" for subject in range(5) for modality in (0, 1, 2)]
    for name in names:
        (folder / name).touch()
    content = {
        "name": "Toy",
        "modality": {"0": "MR", "1": "CT", "2": "PET"},
        "labels": {"liver": 1},
        "registration_direction": {"fixed": 0, "moving": 2},
        "pairings": "inter_subject",
        "training": [{"image": name} for name in names],
        "registration_val": [{"fixed": names[3], "moving": names[4]}],
    }
    write_json(folder / "dataset.json", content)
    dataset = load_dataset(folder)
    for split in (*make_splits(dataset), split_all(dataset)):
        assert subjects_of(dataset, split.train + split.validation + split.atlas) == {"0000", "0002", "0003", "0004"}


def test_all() -> None:
    dataset = toy([{0, 1}] * 3)
    split = split_all(dataset)
    assert split.fold == ALL
    assert split.train == split.validation == tuple(case.name for case in dataset.cases)
    assert len(split.validation_pairs) == 6


def test_written_and_read(tmp_path: Path) -> None:
    splits = make_splits(toy([{0, 1}] * 6), folds=3)
    write_splits(tmp_path / "splits.json", splits)
    assert read_splits(tmp_path / "splits.json") == splits
    (tmp_path / "splits.json").write_text('[{"fold": 0}]')
    with pytest.raises(UnreadableFile, match=r"0\.train"):
        read_splits(tmp_path / "splits.json")


@pytest.mark.parametrize("text", ["3", "fold3", "fold_3", 3])
def test_fold_is_parsed(text: str | int) -> None:
    assert parse_fold(text, range(5)) == 3


@pytest.mark.parametrize("text", ["5", "fold_9", "-1", "first", ""])
def test_fold_that_does_not_exist(text: str) -> None:
    assert parse_fold("all", range(5)) == "all"
    with pytest.raises(UnknownName) as refusal:
        parse_fold(text, range(5))
    assert (refusal.value.kind, refusal.value.name) == ("fold", text)
    assert refusal.value.known == ("0", "1", "2", "3", "4", "all")


def test_real_datasets() -> None:
    if not (SHARED / "data").is_dir():
        pytest.skip(f"{SHARED / 'data'} is missing")
    abdomen = make_splits(load_dataset(SHARED / "data/Dataset001_AbdomenMRCT"))
    assert [len(split.validation_pairs) for split in abdomen] == [6] * 5
    brain = make_splits(load_dataset(SHARED / "data/Dataset002_BrainMRCT"))
    assert [len(split.validation_pairs) for split in brain] == [20, 20, 20, 20, 12]


def test_unlabelled_subjects_leave_no_fold_without_pairs() -> None:
    dataset = toy([{0, 1}] * 20)
    cases = tuple(case if int(case.subject) <= 10 else replace(case, label=None) for case in dataset.cases)
    splits = make_splits(replace(dataset, cases=cases))
    assert all(split.validation_pairs for split in splits)


def test_splits_that_no_longer_fit_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = toy([{0, 1}] * 6)
    path, splits = tmp_path / "splits.json", make_splits(dataset)
    check_splits(path, splits, dataset)
    with pytest.raises(UnreadableFile, match=dataset.cases[-1].name) as refusal:
        check_splits(path, splits, replace(dataset, cases=dataset.cases[:-1]))
    assert refusal.value.path == path
    with pytest.raises(UnreadableFile, match=splits[0].train[0]):
        check_splits(path, splits, replace(dataset, held_out=frozenset({splits[0].train[0]})))
    with pytest.raises(UnreadableFile, match="both sides"):
        check_splits(path, [replace(splits[0], train=splits[0].train + splits[0].validation)], dataset)
    caplog.clear()
    check_splits(path, splits, toy([{0, 1}] * 7))
    assert "does not use 2 cases" in caplog.text
