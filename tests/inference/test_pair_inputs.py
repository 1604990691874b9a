from pathlib import Path
from types import SimpleNamespace

import pytest

from llmreg.errors import BadArgument, MissingFile, UserError
from llmreg.inference.pair_inputs import OPTIONAL_FILES, find_pairs
from llmreg.plans.plan_settings import Normalization


def plans(fixed: int = 0, moving: int = 1) -> SimpleNamespace:
    table = {m: Normalization(modality=f"M{m}", scheme="percentiles", lower=0, upper=95) for m in (0, 1)}
    return SimpleNamespace(
        fixed_modality=fixed, moving_modality=moving, normalization=table, dataset_name="Dataset001_A"
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    for subject in (1, 2):
        for modality in (0, 1, 2):
            (tmp_path / f"A_{subject:04d}_{modality:04d}.nii.gz").touch()
    return tmp_path


def names(pairs):
    return [pair.name for pair in pairs]


def test_the_modalities_of_a_subject_are_a_pair_and_others_are_passed_over(folder):
    assert names(find_pairs(folder, plans())) == ["A_0001_0000_A_0001_0001", "A_0002_0000_A_0002_0001"]
    assert names(find_pairs(folder, plans(1, 0)))[0] == "A_0001_0001_A_0001_0000"
    assert len(find_pairs(folder, plans(), all_pairs=True)) == 4


def test_one_modality_needs_a_word_on_what_is_fixed(folder):
    with pytest.raises(BadArgument) as refusal:
        find_pairs(folder, plans(0, 0))
    assert refusal.value.argument == "all_pairs"
    assert names(find_pairs(folder, plans(0, 0), all_pairs=True)) == [
        "A_0001_0000_A_0002_0000",
        "A_0002_0000_A_0001_0000",
    ]


@pytest.mark.parametrize(("missing", "role"), [("A_0002_0001", "moving"), ("A_0002_0000", "fixed")])
def test_an_image_without_its_partner_is_named(folder, missing, role):
    (folder / f"{missing}.nii.gz").unlink()
    with pytest.raises(UserError, match=f"A_0002.*no {role} image"):
        find_pairs(folder, plans())


def test_a_modality_that_is_missing_altogether_and_odd_names_are_refused(folder):
    (folder / "odd.nii.gz").touch()
    with pytest.raises(UserError, match=r"odd\.nii\.gz"):
        find_pairs(folder, plans())
    (folder / "odd.nii.gz").unlink()
    for path in folder.glob("*_0000.nii.gz"):
        path.unlink()
    with pytest.raises(UserError, match="no fixed image"):
        find_pairs(folder, plans())
    with pytest.raises(MissingFile) as refusal:
        find_pairs(folder / "gone", plans())
    assert refusal.value.path == folder / "gone"


def write(folder: Path, text: str) -> Path:
    path = folder / "pairs.csv"
    path.write_text(text)
    return path


def test_a_table_gives_everything(folder):
    for name in ("points.csv", "mask.nii.gz", "start.tfm"):
        (folder / name).touch()
    table = write(
        folder,
        "pair_id,fixed,moving,fixed_modality,moving_label,fixed_points,moving_mask,initial_transform,fixed_mask\n"
        "one,A_0001_0000.nii.gz,A_0002_0001.nii.gz,PET,A_0002_0002.nii.gz,points.csv,mask.nii.gz,start.tfm,\n",
    )
    (pair,) = find_pairs(table, plans())
    assert (pair.pair_id, pair.name) == ("one", "A_0001_0000_A_0002_0001")
    # What the table does not say, the file's name does.
    assert (pair.fixed_modality, pair.moving_modality) == ("PET", 1)
    assert pair.moving_label == folder / "A_0002_0002.nii.gz"
    assert pair.fixed_points == folder / "points.csv"
    assert (pair.fixed_mask, pair.moving_mask) == (None, folder / "mask.nii.gz")
    assert pair.initial_transform == folder / "start.tfm"
    assert find_pairs(folder, plans()) == [pair]


ROW = "A_0001_0000.nii.gz,A_0002_0001.nii.gz"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fixed\nA_0001_0000.nii.gz\n", "'moving'"),
        ("fixed,moving,colour\n", "'colour'"),
        ("fixed,moving\n", "no pair"),
        ("fixed,moving\nA_0001_0000.nii.gz,\n", "line 2"),
        ("fixed,moving\nA_0001_0000.nii.gz,gone.nii.gz\n", "gone"),
        (f"fixed,moving\n{ROW}\n{ROW}\n", "two pairs"),
        (f"fixed,moving,pair_id\n{ROW},a\nA_0002_0000.nii.gz,A_0001_0001.nii.gz,a\n", "two pairs"),
        *((f"fixed,moving,{column}\n{ROW},gone\n", "gone in line 2") for column in OPTIONAL_FILES),
    ],
)
def test_a_table_that_is_wrong_is_refused(folder, text, message):
    with pytest.raises(UserError, match=message):
        find_pairs(write(folder, text), plans())


def test_a_table_that_is_no_text_is_refused(folder):
    (folder / "pairs.csv").write_bytes(b"fixed,moving\n\xff\xfe\x80\n")
    with pytest.raises(UserError, match="UTF-8"):
        find_pairs(folder, plans())
