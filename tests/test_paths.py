"""Folders from the environment, and datasets in them."""

from pathlib import Path

import pytest

from llmreg import paths
from llmreg.errors import Ambiguous, UnknownDataset, UserError

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
    with pytest.raises(UserError, match=variable):
        folder()
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
    with pytest.raises(UnknownDataset) as error:
        paths.find_dataset_folder(name, root)
    assert (error.value.name, error.value.root) == (str(name), root)
    assert error.value.known == ("Dataset001_Brain", "Dataset012_Liver", "Dataset012_Lung")
    assert str(root) in str(error.value)


def test_two_folders_of_one_id_are_named(root):
    with pytest.raises(Ambiguous) as error:
        paths.find_dataset_folder(12, root)
    assert error.value.candidates == (str(root / "Dataset012_Liver"), str(root / "Dataset012_Lung"))
    assert paths.find_dataset_folder("Dataset012_Lung", root) == root / "Dataset012_Lung"
