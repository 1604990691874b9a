"""Installing a model beside others: nothing is lost, and nothing is left of what failed."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_study import check_refusal
from zipped_models import (
    NAME,
    WEIGHTS,
    members_of,
    tree,
    zip_members,
)

from llmreg.commands import export_model, install_model
from llmreg.errors import NotWritable, UserError
from llmreg.sharing import installing


def test_nothing_that_exists_is_replaced_unasked(
    folder: Path, good_zip: bytes, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, arguments = tmp_path / "model.zip", ["-m", str(folder), "-f", "0", "-o", str(tmp_path / "model.zip")]
    out.write_text("mine")
    assert export_model.main(arguments) == 2
    check_refusal(capsys, "model.zip exists already", "--overwrite")
    assert out.read_text() == "mine"
    assert export_model.main([*arguments, "--overwrite"]) == 0
    assert out.read_bytes() == good_zip
    (target / NAME).mkdir(parents=True)
    (target / NAME / "precious").write_text("mine")
    before = tree(tmp_path)
    assert install_model.main([str(out), "-o", str(target)]) == 2
    check_refusal(capsys, f"{NAME} exists already", "--overwrite")
    assert tree(tmp_path) == before
    assert install_model.main([str(out), "-o", str(target), "--overwrite"]) == 0
    assert not (target / NAME / "precious").exists()
    assert (target / NAME / WEIGHTS).exists()
    assert {path.name for path in target.parent.rglob("*") if path.name.startswith(".")} == set()


def test_what_is_no_folder_is_never_replaced(
    good_zip: bytes, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.zip").write_bytes(good_zip)
    (target / NAME).parent.mkdir()
    for create in ((target / NAME).write_text, (target / NAME).symlink_to):
        create("nowhere")
        assert install_model.main([str(tmp_path / "model.zip"), "-o", str(target), "--overwrite"]) == 2
        check_refusal(capsys, f"{NAME} exists already", "remove it")
        (target / NAME).unlink()
    # A link to a folder is replaced itself; the folder stays.
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("mine")
    (target / NAME).symlink_to(tmp_path / "elsewhere")
    assert install_model.main([str(tmp_path / "model.zip"), "-o", str(target), "--overwrite"]) == 0
    assert (target / NAME / WEIGHTS).exists()
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["precious"]


def test_a_model_is_replaced_only_by_a_whole_one(
    good_zip: bytes, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (target / NAME).mkdir(parents=True)
    (target / NAME / "precious").write_text("mine")
    (tmp_path / "model.zip").write_bytes(
        zip_members(members_of(good_zip) | {WEIGHTS: b"?" * len(members_of(good_zip)[WEIGHTS])})
    )
    before = tree(tmp_path)
    assert install_model.main([str(tmp_path / "model.zip"), "-o", str(target), "--overwrite"]) == 2
    check_refusal(capsys, "sha256")
    assert tree(tmp_path) == before


def test_the_old_model_comes_back_when_the_new_one_cannot_be_renamed(
    good_zip: bytes, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (target / NAME).mkdir(parents=True)
    (target / NAME / "precious").write_text("mine")
    (tmp_path / "model.zip").write_bytes(good_zip)
    before, rename = tree(tmp_path), Path.rename

    def rename_old_only(path: Path, destination: Path) -> Path:
        if path.name == "new":
            raise OSError(errno.EBUSY, "Device or resource busy")
        return rename(path, destination)

    monkeypatch.setattr(Path, "rename", rename_old_only)
    with pytest.raises(NotWritable):
        installing.install_model(tmp_path / "model.zip", target, overwrite=True)
    assert tree(tmp_path) == before


def test_new_folders_go_again_when_nothing_came_of_it(good_zip: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(
        zip_members(members_of(good_zip) | {WEIGHTS: b"?" * len(members_of(good_zip)[WEIGHTS])})
    )
    before = tree(tmp_path)
    with pytest.raises(UserError):
        installing.install_model(tmp_path / "model.zip", tmp_path / "new/results")
    assert tree(tmp_path) == before


def test_an_interruption_leaves_nothing(
    good_zip: bytes, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(folder: Path, *_: object) -> None:
        assert (folder / WEIGHTS).exists()
        raise KeyboardInterrupt

    (tmp_path / "model.zip").write_bytes(good_zip)
    before = tree(tmp_path)
    monkeypatch.setattr(installing, "read_reference", interrupt)
    assert install_model.main([str(tmp_path / "model.zip"), "-o", str(target)]) == 130
    assert tree(tmp_path) == before


def test_a_full_disk_is_noticed_before_the_first_byte(
    good_zip: bytes, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.zip").write_bytes(good_zip)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(installing.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    before = tree(tmp_path)
    assert install_model.main([str(tmp_path / "model.zip"), "-o", str(target)]) == 2
    check_refusal(capsys, "MiB left")
    assert tree(tmp_path) == before


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_changes_in_a_file_it_is_refused_or_makes_no_difference(
    data: st.DataObject, good_zip: bytes, tmp_path: Path
) -> None:
    content = bytearray(good_zip)
    # Half of the changes hit the list of members and their headers, where most can be broken.
    headers = [position for position in range(len(good_zip) - 4) if good_zip[position : position + 2] == b"PK"]
    positions = st.one_of(
        st.integers(0, len(good_zip) - 1),
        st.tuples(st.sampled_from(headers), st.integers(0, 60)).map(
            lambda header_and_offset: min(sum(header_and_offset), len(good_zip) - 1)
        ),
    )
    for position in data.draw(st.lists(positions, min_size=1, max_size=3)):
        content[position] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(good_zip))) :]
    file, root = tmp_path / "model.zip", tmp_path / "fuzzed"
    file.write_bytes(content)
    try:
        installing.install_model(file, root)
    except UserError:
        assert not root.exists()
    else:
        (tmp_path / "good.zip").write_bytes(good_zip)
        if not (tmp_path / "as it was").exists():
            installing.install_model(tmp_path / "good.zip", tmp_path / "as it was")
        assert tree(root) == tree(tmp_path / "as it was")
        shutil.rmtree(root)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert install_model.main([str(tmp_path / "none.zip"), "-o", str(tmp_path)]) == 2
    check_refusal(capsys, "none.zip does not exist")
    assert install_model.main([str(tmp_path), "-o", str(tmp_path)]) == 2
    check_refusal(capsys, "is not a file")
    assert export_model.main(["-m", str(tmp_path), "-d", "1", "-o", str(tmp_path / "model.zip")]) == 2
    check_refusal(capsys, "leave out -d")
