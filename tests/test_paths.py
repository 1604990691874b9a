"""Folders from the environment, datasets in them, and the names of models and folds."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmreg import paths
from llmreg.errors import Ambiguous, MissingFolder, UnknownName
from llmreg.paths import ModelName, find_fold_folders, find_model_folders, fold_folder, fold_name, is_word

FOLDERS = {
    "llmreg_raw": paths.raw_folder,
    "llmreg_preprocessed": paths.preprocessed_folder,
    "llmreg_results": paths.results_folder,
}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No variable is set."""
    for variable in (*FOLDERS, "llmreg_home", "llmreg_llm", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    return monkeypatch


@pytest.mark.parametrize("variable", FOLDERS)
def test_a_folder_is_named_by_its_own_variable_or_by_that_of_all(variable, environment):
    folder = FOLDERS[variable]
    with pytest.raises(MissingFolder) as missing:
        folder()
    assert (missing.value.variable, missing.value.common) == (variable, "llmreg_home")
    environment.setenv("llmreg_home", "~/home")
    assert folder() == Path("~/home").expanduser() / variable.removeprefix("llmreg_")
    environment.setenv(variable, "/somewhere/else")
    assert folder() == Path("/somewhere/else")


def test_language_models_need_no_variable(environment):
    assert paths.llm_cache_folder() == Path("~/.cache/llmreg/llm").expanduser()
    environment.setenv("XDG_CACHE_HOME", "/cache")
    assert paths.llm_cache_folder() == Path("/cache/llmreg/llm")
    environment.setenv("llmreg_home", "/home")
    assert paths.llm_cache_folder() == Path("/home/llm")
    environment.setenv("llmreg_llm", "/models")
    assert paths.llm_cache_folder() == Path("/models")


@pytest.fixture
def root(tmp_path, environment):
    for name in ("Dataset001_Brain", "Dataset012_Lung", "Dataset012_Liver", "Dataset1_Short", "Other"):
        (tmp_path / "raw" / name).mkdir(parents=True)
    (tmp_path / "raw" / "Dataset003_File").write_text("")
    environment.setenv("llmreg_home", str(tmp_path))
    return tmp_path / "raw"


@pytest.mark.parametrize("name", [1, "1", "001", "Dataset001_Brain"])
def test_a_dataset_is_found_by_its_id_or_name(name, root):
    assert paths.find_dataset_folder(name, root) == root / "Dataset001_Brain"
    assert paths.preprocessed_dataset(name) == root.parent / "preprocessed" / "Dataset001_Brain"


@pytest.mark.parametrize("name", [2, "3", "Dataset001", "Other", "Dataset1_Short"])
def test_a_dataset_without_a_folder_is_refused_with_those_there_are(name, root):
    with pytest.raises(UnknownName) as error:
        paths.find_dataset_folder(name, root)
    assert (error.value.kind, error.value.name) == ("dataset", str(name))
    assert error.value.known == ("Dataset001_Brain", "Dataset012_Liver", "Dataset012_Lung")
    assert str(root) in str(error.value)


def test_two_folders_of_one_id_are_named(root):
    with pytest.raises(Ambiguous) as error:
        paths.find_dataset_folder(12, root)
    assert error.value.candidates == (str(root / "Dataset012_Liver"), str(root / "Dataset012_Lung"))
    assert paths.find_dataset_folder("Dataset012_Lung", root) == root / "Dataset012_Lung"


NAME = ModelName("Dataset001_A", "llm_morph", "default_15min", "half")
TEXT = "Dataset001_A/llm_morph__default_15min__half"


def test_a_name_is_read_as_it_is_written() -> None:
    assert str(NAME) == TEXT
    assert ModelName.parse(TEXT) == NAME
    assert ModelName.of(Path("/results") / TEXT) == NAME
    assert NAME.below(Path("/results")) == Path("/results") / TEXT
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
    first_model, second_model = find_model_folders(tmp_path)
    assert (first_model.name, second_model.name) == ("a__default__full", "b__default__full")
    for fold in ("all", 0, "1"):
        fold_folder(first_model, fold).mkdir()
    (first_model / "fold_2").touch()
    assert find_fold_folders(first_model) == {
        "0": first_model / "fold_0",
        "1": first_model / "fold_1",
        "all": first_model / "fold_all",
    }


def test_folds_have_a_bare_name() -> None:
    assert [fold_name(text) for text in ("0", "fold0", "fold_0", "fold_all")] == ["0", "0", "0", "all"]
