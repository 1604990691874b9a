from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmreg.errors import MissingFile, NotWritable, UnreadableFile, WouldOverwrite, WouldReplaceInput
from llmreg.files import (
    atomic_write,
    check_outputs,
    check_writable,
    file_digest,
    image_digest,
    json_digest,
    read_json,
    remove_partial,
    write_json,
    write_text,
)

SIZE = 200_000
NOISE = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8).tobytes()


def pack_in_blocks(content: bytes) -> bytes:
    """Pack content in two blocks with an extra field each and an empty block at the end, as bgzip does."""

    def pack_block(part: bytes) -> bytes:
        packed = gzip.compress(part, mtime=0)
        extra = b"\x06\x00BC\x02\x00\x00\x00"
        return packed[:3] + b"\x04" + packed[4:10] + extra + packed[10:]

    half = len(content) // 2
    return pack_block(content[:half]) + pack_block(content[half:]) + pack_block(b"")


@pytest.mark.parametrize("pack", [bytes, lambda content: gzip.compress(content, mtime=0), pack_in_blocks])
@given(place=st.integers(0, SIZE - 1))
def test_any_byte_that_changes_is_noticed_and_no_time(tmp_path_factory, pack, place: int) -> None:
    path = tmp_path_factory.getbasetemp() / "volume"
    path.write_bytes(pack(NOISE))
    before = image_digest(path)
    os.utime(path, ns=(5, 5))
    assert image_digest(path) == before
    # Noise cannot be compressed, so that the file keeps its length.
    changed = bytearray(NOISE)
    changed[place] ^= 1
    path.write_bytes(pack(bytes(changed)))
    assert image_digest(path) != before


def test_a_packed_file_is_not_read_whole(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(NOISE, mtime=0))
    (tmp_path / "volume").write_bytes(packed)
    before = image_digest(tmp_path / "volume")
    packed[len(packed) // 2] ^= 1
    (tmp_path / "volume").write_bytes(packed)
    # The file is broken, in a way that no program packs one.
    assert image_digest(tmp_path / "volume") == before


def test_a_file_that_breaks_off_in_its_first_bytes_has_a_digest(tmp_path: Path) -> None:
    path = tmp_path / "volume"
    path.write_bytes(b"\x1f\x8b")
    assert image_digest(path) == file_digest(path)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    for digest in (file_digest, image_digest):
        with pytest.raises(UnreadableFile) as error:
            digest(tmp_path / "gone")
        assert error.value.path == tmp_path / "gone"


def test_the_order_of_keys_is_no_content() -> None:
    assert json_digest({"a": 1, "b": [2]}) == json_digest({"b": [2], "a": 1}) != json_digest({"a": 1, "b": [3]})


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.nii.gz"
    with atomic_write(path) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == path.parent
        assert temporary.name.endswith("a.nii.gz")
        assert not path.exists()
    assert path.read_text() == "whole"

    def fail() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_written_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "")
    (tmp_path / "b").write_text("")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_only_the_partial_files_of_this_file_are_removed(tmp_path: Path) -> None:
    for name in (".partial-12345678-a[1].txt", ".partial-12345678-a1.txt", "a[1].txt"):
        (tmp_path / name).write_text("")
    remove_partial(tmp_path / "a[1].txt")
    assert {path.name for path in tmp_path.iterdir()} == {".partial-12345678-a1.txt", "a[1].txt"}


def test_results_replace_nothing_unless_it_is_allowed_and_no_input_ever(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("")
    check_outputs([target], [source], overwrite=False)
    target.write_text("")
    with pytest.raises(WouldOverwrite) as error:
        check_outputs([tmp_path / "new", target], [source], overwrite=False)
    assert error.value.path == target
    check_outputs([target], [source], overwrite=True)
    (tmp_path / "link").symlink_to(source)
    for overwrite in (True, False):
        with pytest.raises(WouldReplaceInput):
            check_outputs([tmp_path / "link"], [source], overwrite=overwrite)


def test_a_folder_that_cannot_be_written_is_named_and_others_stay_empty(tmp_path: Path) -> None:
    check_writable(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(NotWritable) as error:
        check_writable(tmp_path / "file")
    assert error.value.path.parent == tmp_path / "file"


def test_json_is_read_as_it_was_written(tmp_path: Path) -> None:
    content = {"b": [1, 2.5, None], "a": "\u00e4"}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    assert list(read_json(tmp_path / "a.json")) == ["b", "a"]


def test_json_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFile):
        read_json(tmp_path / "gone.json")
    for name, content in (("half.json", b'{"a": 1'), ("binary.json", b"\xff\xfe"), ("deep.json", b"[" * 100_000)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableFile) as error:
            read_json(tmp_path / name)
        assert error.value.path == tmp_path / name
    with pytest.raises(UnreadableFile):
        read_json(tmp_path)
