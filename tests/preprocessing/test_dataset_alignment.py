"""Templates of a fold know nothing of the cases that it holds out."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from rewritten import recompress
from toy_dataset import NAME, prepare, replace_method

from llmreg.data.splits import make_splits
from llmreg.geometry.grid import Grid
from llmreg.images.image_files import read_image, write_image
from llmreg.preprocessing.dataset_alignment import (
    ALL_CASES,
    LEAST_GAIN,
    METHODS,
    TEMPLATES_FOLDER,
    choose_prealignment,
    describe_example,
    learn_template_sets,
    name_template_set,
    name_templates_without,
    read_template_set,
    update_templates,
)


@pytest.fixture
def prepared_dataset(tmp_path: Path):
    dataset, _, plans = prepare(tmp_path)
    return dataset, replace_method(plans, "template"), make_splits(dataset)


def test_a_held_out_case_belongs_to_the_set_of_its_fold(prepared_dataset) -> None:
    _, _, splits = prepared_dataset
    assert [name_template_set(name) for name in (0, "3", ALL_CASES)] == ["fold_0", "fold_3", ALL_CASES]
    for split in splits:
        for case in split.validation:
            assert name_templates_without(case, splits) == name_template_set(split.fold)
    assert name_templates_without("unknown", splits) == ALL_CASES
    assert name_templates_without(splits[0].validation[0], []) == ALL_CASES


def test_an_example_tells_where_structures_lie(prepared_dataset) -> None:
    dataset, plans, _ = prepared_dataset
    case = dataset.case("Toy_0002_0001")
    example = describe_example(case, plans)
    assert example.modality == 1
    label = read_image(case.label)
    for number in (1, 2):
        indices = np.argwhere(sitk.GetArrayFromImage(label) == number).mean(axis=0)[::-1]
        expected = Grid.from_image(label).index_to_physical(indices)
        np.testing.assert_allclose(example.centroids[number], expected, atol=1e-6)


def test_a_fold_learns_nothing_from_the_images_that_it_holds_out(prepared_dataset) -> None:
    dataset, plans, splits = prepared_dataset
    before = learn_template_sets(dataset, plans, splits, 1)
    assert before.keys() == {ALL_CASES, *(name_template_set(split.fold) for split in splits)}
    held_out = dataset.case(splits[0].validation[0])
    image = read_image(held_out.image)
    mirrored = sitk.GetImageFromArray(sitk.GetArrayFromImage(image)[..., ::-1])
    mirrored.CopyInformation(image)
    write_image(mirrored, held_out.image)
    after = learn_template_sets(dataset, plans, splits, 1)

    def picture(sets, name):
        return sitk.GetArrayFromImage(sets[name][held_out.modality].image)

    np.testing.assert_array_equal(picture(before, "fold_0"), picture(after, "fold_0"))
    other_sets = [name for name in before if name != "fold_0"]
    assert all(
        picture(before, n).shape != picture(after, n).shape or (picture(before, n) != picture(after, n)).any()
        for n in other_sets
    )


def test_the_fixed_cases_lie_on_average_in_the_middle_of_the_frame(prepared_dataset) -> None:
    dataset, plans, _ = prepared_dataset
    # Without one of the moving cases, these lie elsewhere on average.
    lacking = replace(dataset, held_out=frozenset({"Toy_0003_0001"}))
    templates = learn_template_sets(lacking, plans, (), 1)[ALL_CASES]
    np.testing.assert_allclose(templates[plans.fixed_modality].centre, plans.frame.centre, atol=1e-6)
    assert np.linalg.norm(templates[plans.moving_modality].centre - plans.frame.centre) > 0.1


def test_templates_are_learned_again_when_a_training_case_changed(prepared_dataset, tmp_path: Path) -> None:
    dataset, plans, splits = prepared_dataset
    volumes = tmp_path / "volumes"
    assert read_template_set(volumes, ALL_CASES) == {}
    digest = update_templates(dataset, plans, splits, volumes, 1)
    files = sorted((volumes / TEMPLATES_FOLDER).rglob("*.nii.gz"))
    assert len(files) == 2 * 2 * (1 + len(splits))
    times = [file.stat().st_mtime_ns for file in files]
    assert update_templates(dataset, plans, splits, volumes, 1) == digest
    assert [file.stat().st_mtime_ns for file in files] == times
    assert read_template_set(volumes, "fold_0").keys() == {0, 1}
    recompress(tmp_path / "raw" / NAME / "imagesTr" / "Toy_0001_0000.nii.gz")
    assert update_templates(dataset, plans, splits, volumes, 1) != digest
    assert all(file.stat().st_mtime_ns != time for file, time in zip(files, times, strict=True))
    assert update_templates(dataset, plans, splits[:-1], volumes, 1) != digest


def test_the_reason_lists_the_dice_of_every_method_and_the_best_is_chosen(tmp_path: Path) -> None:
    dataset, _, plans = prepare(tmp_path)
    chosen = choose_prealignment(dataset, plans, 1, make_splits(dataset))
    reason = chosen.reasons["prealignment"]
    dice = {method: float(re.search(rf"{method} (\d+\.\d)", reason)[1]) / 100 for method in METHODS}
    best = "centre"
    for method in METHODS:
        if dice[method] > dice[best] + LEAST_GAIN:
            best = method
    assert chosen.prealignment.method == best
    # Bodies of about one size overlap once they are centred.
    assert min(dice.values()) > 0.4
    assert chosen.model_copy(update={"prealignment": plans.prealignment, "reasons": plans.reasons}) == plans


def test_without_labelled_pairs_the_best_looking_shift_is_searched(tmp_path: Path) -> None:
    dataset, _, plans = prepare(tmp_path, labelled=False)
    chosen = choose_prealignment(dataset, plans, 1, ())
    assert chosen.prealignment.method == "search"
    assert chosen.reasons["prealignment"].startswith("search:")


def test_labels_of_held_out_cases_are_not_looked_at(tmp_path: Path) -> None:
    dataset, _, plans = prepare(tmp_path)
    held_out = replace(dataset, held_out=frozenset(case.name for case in dataset.cases))
    assert choose_prealignment(held_out, plans, 1, ()).prealignment.method == "search"


def test_aligned_cases_stay(tmp_path: Path) -> None:
    dataset, _, plans = prepare(tmp_path, labelled=False)
    aligned = plans.prealignment.model_copy(update={"aligned_grid": plans.frame.to_dict()})
    plans = plans.model_copy(update={"prealignment": aligned})
    assert choose_prealignment(dataset, plans, 1, ()) is plans
