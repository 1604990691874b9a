from __future__ import annotations

from pathlib import Path

import pytest

from llmreg.model_folder import ModelName, find_fold_folders, find_model_folders, fold_folder, fold_name, is_word

NAME = ModelName("Dataset001_A", "llm_morph", "default_15min", "half")
TEXT = "Dataset001_A/llm_morph__default_15min__half"


def test_a_name_is_read_as_it_is_written() -> None:
    assert str(NAME) == TEXT
    assert ModelName.parse(TEXT) == NAME
    assert ModelName.of(Path("/results") / TEXT) == NAME
    assert NAME.below(Path("/results")) == Path("/results") / TEXT
    assert NAME.folder_name == "llm_morph__default_15min__half"
    NAME.check_portable()


@pytest.mark.parametrize("text", ["A/llm_morph__default", "A/a__b__c__d", "A/__b__c", "", "A/", "A/a__b__"])
def test_other_text_is_no_name(text: str) -> None:
    with pytest.raises(ValueError, match="is not <dataset>"):
        ModelName.parse(text)


@pytest.mark.parametrize(
    "name",
    [
        ModelName("Dataset1_A", "a", "b", "c"),
        ModelName("Dataset001_", "a", "b", "c"),
        ModelName("Dataset001_..", "a", "b", "c"),
        ModelName("Dataset001_A/..", "a", "b", "c"),
        ModelName("Dataset001_A\\..", "a", "b", "c"),
        ModelName("Dataset001_A:", "a", "b", "c"),
        ModelName("Dataset001_A\x1b", "a", "b", "c"),
        ModelName("Dataset001_A", "a b", "b", "c"),
        ModelName("Dataset001_A", "a", "../b", "c"),
        ModelName("Dataset001_A", "a", "b_", "c"),
        ModelName("Dataset001_" + "ä" * 120, "a", "b", "c"),
    ],
)
def test_names_that_some_file_system_lacks_are_not_portable(name: ModelName) -> None:
    with pytest.raises(ValueError, match="a model is called"):
        name.check_portable()


def test_words_are_joined_by_single_signs() -> None:
    assert all(map(is_word, ("a", "a_b", "15min", "a.b-c_d")))
    assert not any(map(is_word, ("", "_a", "a__b", "a_", "a b", "a\n", "ä")))


def test_folders_of_models_and_folds_are_found(tmp_path: Path) -> None:
    for name in ("b__default__full", "a__default__full", "a__b__c__d", "notes"):
        (tmp_path / name).mkdir()
    model, other = find_model_folders(tmp_path)
    assert (model.name, other.name) == ("a__default__full", "b__default__full")
    for fold in ("all", 0, "1"):
        fold_folder(model, fold).mkdir()
    (model / "fold_2").touch()
    assert find_fold_folders(model) == {
        "0": model / "fold_0",
        "1": model / "fold_1",
        "all": model / "fold_all",
    }


def test_folds_have_a_bare_name() -> None:
    assert [fold_name(text) for text in ("0", "fold0", "fold_0", "fold_all")] == ["0", "0", "0", "all"]
