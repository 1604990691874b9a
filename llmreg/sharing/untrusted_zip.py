"""Reading a zip that may come from anybody: what its list of members says is checked before any of them is read."""

from __future__ import annotations

import gzip
import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from llmreg.errors import UserError

MiB = 2**20
CHUNK = MiB
# What reading something hostile or damaged may raise, beside UserError.
UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    SafetensorError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
)
_LARGEST_TOTAL = 32 * 1024 * MiB
# Weights hardly shrink at all, JSON 3 to 8 times; below that size it does not matter.
_LARGEST_RATIO, _SMALL = 50, MiB
# No read of an honest file is longer; the list of a zip's members, for which zipfile has no limit, is one read.
_LONGEST_READ = 4 * MiB
# Bits of a member's flags: speed of compression, size after the data, UTF-8. Others mean encryption and patches.
_KNOWN_FLAGS = 0b110 | 1 << 3 | 1 << 11
_DOS_FOLDER_OR_LINK = 0x10 | 0x400
_MEMBER_HEADER = 30

Members = Mapping[str, zipfile.ZipInfo]


def refusal(archive: Path, problem: str) -> UserError:
    return UserError(f"{archive} {problem}: get it again from whoever exported it.")


def shown(text: str) -> str:
    """Text of a stranger for a sentence: one line, short, and without what a terminal would obey."""
    line = next(iter(text.strip().splitlines()), "")
    return "".join(c if c.isprintable() else "?" for c in line)[:160]


@contextmanager
def opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    """Raises UserError when it is not a zip."""
    if not archive.is_file():
        problem = "is not a file" if archive.exists() else "does not exist"
        raise UserError(f"{archive} {problem}: give a zip that llmreg_export_model wrote.")
    try:
        file = _BoundedFile(archive)
    except OSError as error:
        raise UserError(f"Cannot read {archive}: {error.strerror}.") from error
    with file:
        with _read_as_zip(archive):
            content = zipfile.ZipFile(file)
        with content:
            yield content


class _BoundedFile(io.FileIO):
    """A file of which nobody reads much at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _LONGEST_READ:
            raise zipfile.BadZipFile("the list of its members is too long")
        return super().read(-1 if size is None else size)


@contextmanager
def _read_as_zip(archive: Path) -> Iterator[None]:
    try:
        yield
    except UNREADABLE as error:
        raise refusal(archive, f"is not a whole zip file ({shown(str(error)) or type(error).__name__})") from error


def checked_members(content: zipfile.ZipFile, archive: Path, limit: Callable[[str], int | None]) -> Members:
    """The members by name.

    Args:
        content: the open zip.
        archive: its path.
        limit: the bytes that a member of a name may have at most; None for a name that is not allowed.

    Raises:
        UserError: names, kinds and sizes are not all as they must be.
    """
    members: dict[str, zipfile.ZipInfo] = {}
    for info in content.infolist():
        # zipfile shortens the name at a NUL, and turns Windows' separators.
        name = info.orig_filename
        most = limit(name) if name == info.filename else None
        if most is None:
            raise refusal(archive, f"holds {name[:80]!a}, which no shared model does")
        if name in members:
            raise refusal(archive, f"holds {name} twice")
        members[name] = info
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG) or info.external_attr & _DOS_FOLDER_OR_LINK:
            raise refusal(archive, f"holds {name} as a link or folder instead of a file")
        if info.flag_bits & ~_KNOWN_FLAGS:
            raise refusal(archive, f"holds {name} encrypted or in another way that no shared model does")
        # zipfile unpacks others without a bound on the memory it takes.
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise refusal(archive, f"holds {name} in a compression that no shared model has")
        if info.file_size > most or info.file_size > max(_SMALL, _LARGEST_RATIO * info.compress_size):
            raise refusal(archive, f"holds {name}, which unpacks to {info.file_size / MiB:,.1f} MiB, far too much")
    if sum(info.file_size for info in members.values()) > _LARGEST_TOTAL:
        raise refusal(archive, f"unpacks to more than {_LARGEST_TOTAL / MiB / 1024:.0f} GiB")
    end = 0
    for info in sorted(members.values(), key=lambda info: info.header_offset):
        # Members that share bytes are how small bombs are made.
        if info.header_offset < end:
            raise refusal(archive, f"holds {info.filename} inside another member")
        end = info.header_offset + _MEMBER_HEADER + info.compress_size
    return members


def chunks(content: zipfile.ZipFile, info: zipfile.ZipInfo, archive: Path) -> Iterator[bytes]:
    """A member's bytes, a piece at a time; zipfile gives no more than the size in its list."""
    with _read_as_zip(archive):
        member = content.open(info)
    with member:
        while True:
            with _read_as_zip(archive):
                chunk = member.read(CHUNK)
            if not chunk:
                return
            yield chunk


def check_unpacked(path: Path, most: int) -> None:
    """Raises ValueError for a gzip file that unpacks to more bytes: a second place for a bomb."""
    size = 0
    with gzip.open(path) as file:
        while chunk := file.read(CHUNK):
            size += len(chunk)
            if size > most:
                raise ValueError(f"it unpacks to more than {most / MiB:.0f} MiB")
