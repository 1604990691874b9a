from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmreg.comparison.benchmark_settings import TEST, BenchmarkSettings
from llmreg.comparison.judged_pairs import (
    all_judged_pairs,
    digest_registration_inputs,
    digest_scoring_inputs,
    judged_pairs,
)
from llmreg.data.dataset import Dataset, Pair
from llmreg.data.splits import Split, write_splits
from llmreg.errors import BadArgument

PAIRS = (Pair("Toy_0001_0000", "Toy_0001_0001"), Pair("Toy_0002_0000", "Toy_0001_0001"))


def test_validation_pairs_take_the_place_of_test_pairs_that_share_no_annotation(
    dataset: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    settings = BenchmarkSettings("1", (TEST,))
    # Of the test pair, one case has a label map and the other has landmarks.
    assert judged_pairs(settings, TEST, dataset) == dataset.registration_val
    assert all_judged_pairs(settings, dataset) == list(dataset.registration_val)
    assert dataset.name in caplog.text
    annotated = replace(dataset, registration_test=PAIRS[:1])
    assert judged_pairs(settings, TEST, annotated) == PAIRS[:1]


def test_a_fold_is_judged_by_its_annotated_validation_pairs(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("llmreg_home", str(tmp_path / "home"))
    folder = tmp_path / "home" / "preprocessed" / dataset.name
    folder.mkdir(parents=True)
    (tmp_path / "home" / "raw" / dataset.name).mkdir(parents=True)
    pairs = (Pair("Toy_0002_0000", "Toy_0002_0001"), Pair("Toy_0001_0000", "Toy_0003_0001"))
    splits = (Split(0, ("Toy_0003_0000",), (), (), pairs), Split(1, ("Toy_0003_0000",), (), (), pairs[1:]))
    write_splits(folder / "splits.json", splits)
    settings = BenchmarkSettings(dataset.name)
    assert judged_pairs(settings, "0", dataset) == (Pair("Toy_0002_0000", "Toy_0002_0001"),)
    for fold in ("1", "all"):
        with pytest.raises(BadArgument) as error:
            judged_pairs(settings, fold, dataset)
        assert error.value.argument == "folds"


def test_fields_depend_on_images_and_their_roles_and_not_on_annotation(dataset: Dataset) -> None:
    digest = digest_registration_inputs(PAIRS, dataset)
    assert digest_registration_inputs([Pair(pair.moving, pair.fixed) for pair in PAIRS], dataset) != digest
    label = dataset.case("Toy_0001_0000").label
    assert label is not None
    label.write_text("other labels")
    assert digest_registration_inputs(PAIRS, dataset) == digest
    dataset.case("Toy_0001_0000").image.write_text("another image")
    assert digest_registration_inputs(PAIRS, dataset) != digest


def test_scores_depend_on_annotation_and_on_the_label_table(dataset: Dataset) -> None:
    pairs = [*PAIRS, Pair("Toy_0003_0000", "Toy_0003_0001")]
    digests = {
        digest_scoring_inputs(pairs, dataset),
        digest_scoring_inputs(pairs, replace(dataset, labels={1: "another organ"})),
    }
    for case, kind in (("Toy_0001_0000", "label"), ("Toy_0003_0001", "landmarks")):
        getattr(dataset.case(case), kind).write_text("changed")
        digests.add(digest_scoring_inputs(pairs, dataset))
    assert len(digests) == 4
