"""Volumes are written case by case, with a record of what they were made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from rewritten import recompress
from toy_dataset import CASES, prepare, replace_method

from llmreg.data.case_images import read_case
from llmreg.data.splits import make_splits
from llmreg.engine.prealignment import CaseTransform
from llmreg.errors import NotPrepared
from llmreg.geometry.grid import Grid
from llmreg.images.image_files import read_image
from llmreg.preprocessing.common_frame import REFERENCE_FILE, bring_into_frame, read_reference
from llmreg.preprocessing.dataset_alignment import ALL_CASES, name_templates_without, read_template_set
from llmreg.preprocessing.preprocessed_volumes import read_case_record, read_volume, volumes_folder, write_volumes


@pytest.fixture
def prepared_dataset(tmp_path: Path):
    dataset, _, plans = prepare(tmp_path)
    return dataset, replace_method(plans, "rigid")


def test_labels_lie_where_the_cases_transform_puts_them(prepared_dataset, tmp_path: Path) -> None:
    dataset, plans = prepared_dataset
    folder = write_volumes(dataset, plans, tmp_path, 1)
    assert folder == volumes_folder(tmp_path, plans)
    for case in dataset.cases:
        record = read_case_record(folder, case.name)
        transform = CaseTransform.from_dict(record["transform"])
        label = read_image(case.label)
        seg = read_volume(folder / f"{case.name}_seg.b2nd")
        for number in (1, 2):
            stored = np.argwhere(sitk.GetArrayFromImage(label) == number).mean(axis=0)[::-1]
            framed = plans.frame.index_to_physical(np.argwhere(seg == number).mean(axis=0)[::-1])
            expected = Grid.from_image(label).index_to_physical(stored)
            reached = transform.matrix @ framed + transform.translation
            # Nearest neighbours may shift a map by half a voxel along each axis.
            assert np.abs(reached - expected).max() < 0.6 * plans.spacing[0]
        assert record["annotated_labels"] == [1, 2]
        assert record["sources"].keys() == {"image", "label"}


def test_the_reference_case_is_centred_and_others_are_aligned_to_it(prepared_dataset, tmp_path: Path) -> None:
    dataset, plans = prepared_dataset
    folder = write_volumes(dataset, plans, tmp_path, 1)
    first = plans.prealignment.reference_case
    stages = {name: read_case_record(folder, name)["transform"]["stage"] for name in CASES}
    assert stages[first] == "centre"
    assert "rigid" in stages.values()
    reference = sitk.GetArrayFromImage(read_reference(folder, plans))
    np.testing.assert_array_equal(reference, read_volume(folder / f"{first}.b2nd"))


def test_with_another_reference_all_cases_are_written_again(prepared_dataset, tmp_path: Path) -> None:
    dataset, plans = prepared_dataset
    folder = write_volumes(dataset, plans, tmp_path, 1)

    def times() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in folder.glob("*") if path.name != REFERENCE_FILE}

    before = times()
    write_volumes(dataset, plans, tmp_path, 1)
    assert times() == before
    recompress(dataset.case(plans.prealignment.reference_case).image)
    write_volumes(dataset, plans, tmp_path, 1)
    after = times()
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in before)


def test_templates_place_a_case_without_having_seen_it(prepared_dataset, tmp_path: Path) -> None:
    dataset, plans = prepared_dataset
    plans = replace_method(plans, "template")
    splits = make_splits(dataset)
    folder = write_volumes(dataset, plans, tmp_path, 1, splits)
    differences = 0
    for case in dataset.cases:
        images, record = read_case(case, plans.labels), read_case_record(folder, case.name)
        placed = []
        for name in (name_templates_without(case.name, splits), ALL_CASES):
            template = read_template_set(folder, name)[case.modality]
            framed = bring_into_frame(
                images.image, plans.normalization[case.modality], plans, case.image, template=template
            )
            placed.append(framed.transform.to_dict())
        assert record["transform"] == placed[0]
        assert record["transform"]["stage"] == "template"
        differences += placed[0] != placed[1]
    assert differences > 0


def test_a_volume_that_is_missing_has_to_be_preprocessed(tmp_path: Path) -> None:
    with pytest.raises(NotPrepared) as refusal:
        read_volume(tmp_path / "A_0001_0000.b2nd")
    assert refusal.value.step == "preprocess"
