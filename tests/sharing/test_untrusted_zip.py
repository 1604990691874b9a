"""Lists of members that no honest zip has. Zips of whole models that are hostile are in ``test_installing.py``."""

from __future__ import annotations

import gzip
import os
import zipfile
from pathlib import Path

import pytest

from llmreg.errors import BadModelZip, MissingFile
from llmreg.sharing.untrusted_zip import (
    CHUNK,
    check_members,
    check_unpacked_size,
    open_zip,
    read_chunks,
    to_printable_line,
)


def write(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def limit(name: str) -> int | None:
    return {"a": 10, "b": 4 * CHUNK}.get(name)


def test_members_are_read_in_pieces_as_they_were_written(tmp_path: Path) -> None:
    content = os.urandom(2 * CHUNK + 5)
    path = write(tmp_path / "x.zip", {"a": b"0123456789", "b": content})
    with open_zip(path) as archive:
        members = check_members(archive, path, limit)
        assert members.keys() == {"a", "b"}
        pieces = list(read_chunks(archive, members["b"], path))
    assert [len(piece) for piece in pieces] == [CHUNK, CHUNK, 5]
    assert b"".join(pieces) == content


@pytest.mark.parametrize(
    ("members", "compression"),
    [
        ({"a": b"0" * 11}, zipfile.ZIP_STORED),
        ({"c": b""}, zipfile.ZIP_STORED),
        ({"a": b"0"}, zipfile.ZIP_LZMA),
        # Zeros shrink to a thousandth, which neither JSON nor weights do.
        ({"b": bytes(2 * CHUNK)}, zipfile.ZIP_DEFLATED),
    ],
    ids=["too long", "unknown name", "compression", "bomb"],
)
def test_what_the_limits_do_not_allow_is_refused(members: dict[str, bytes], compression: int, tmp_path: Path) -> None:
    path = write(tmp_path / "x.zip", members, compression)
    with open_zip(path) as archive, pytest.raises(BadModelZip) as refusal:
        check_members(archive, path, limit)
    assert refusal.value.path == path
    assert next(iter(members)) in refusal.value.problem


def test_gzip_files_that_unpack_to_more_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(bytes(1000)))
    check_unpacked_size(path, 1000)
    with pytest.raises(ValueError, match="unpacks"):
        check_unpacked_size(path, 999)


def test_other_than_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFile), open_zip(tmp_path / "none.zip"):
        pass
    # Reading a pipe would wait for ever.
    os.mkfifo(tmp_path / "pipe.zip")
    for path in (tmp_path, tmp_path / "pipe.zip"):
        with pytest.raises(BadModelZip), open_zip(path):
            pass


def test_text_of_strangers_is_one_short_line_that_no_terminal_obeys() -> None:
    assert to_printable_line("\x1b[2Jred\nsecond") == "?[2Jred"
    assert len(to_printable_line("x" * 1000)) == 160
    assert to_printable_line(" \n") == ""
