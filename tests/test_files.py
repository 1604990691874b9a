from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmreg.errors import UserError
from llmreg.files import file_digest, image_digest, json_digest

SIZE = 300_000
NOISE = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8).tobytes()


def blocks(content: bytes) -> bytes:
    """Packed in two blocks with an extra field each and an empty one at the end, as bgzip does."""

    def block(part: bytes) -> bytes:
        packed = gzip.compress(part, mtime=0)
        extra = b"\x06\x00BC\x02\x00\x00\x00"
        return packed[:3] + b"\x04" + packed[4:10] + extra + packed[10:]

    half = len(content) // 2
    return block(content[:half]) + block(content[half:]) + block(b"")


@pytest.mark.parametrize("pack", [bytes, lambda content: gzip.compress(content, mtime=0), blocks])
@given(place=st.integers(0, SIZE - 1))
def test_any_byte_that_changes_is_noticed_and_no_time(tmp_path_factory, pack, place: int) -> None:
    path = tmp_path_factory.getbasetemp() / "volume"
    path.write_bytes(pack(NOISE))
    before = image_digest(path)
    os.utime(path, ns=(5, 5))
    assert image_digest(path) == before
    # Noise is not compressed, so that the file is as long.
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
    # Broken, but not written by whoever packs a file.
    assert image_digest(tmp_path / "volume") == before


def test_a_file_that_breaks_off_in_its_first_bytes_has_a_digest(tmp_path: Path) -> None:
    path = tmp_path / "volume"
    path.write_bytes(b"\x1f\x8b")
    assert image_digest(path) == file_digest(path)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Cannot read .*gone"):
        image_digest(tmp_path / "gone")


def test_the_order_of_keys_is_no_content() -> None:
    assert json_digest({"a": 1, "b": [2]}) == json_digest({"b": [2], "a": 1}) != json_digest({"a": 1, "b": [3]})
