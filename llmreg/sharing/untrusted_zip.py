"""Reading a zip that may come from anybody: its list of members is checked before any member is read."""

import gzip
import io
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from llmreg.errors import BadModelZip, MissingFile

MiB = 2**20
CHUNK = MiB
# Files of fewer bytes are written so fast that a progress bar would only flicker.
WORTH_A_BAR = 64 * MiB
_LARGEST_TOTAL = 32 * 1024 * MiB
# Weights hardly shrink at all, JSON 3 to 8 times. Below the size of _SMALL the ratio does not matter.
_LARGEST_RATIO, _SMALL = 50, MiB
# No single read of an honest file is longer than this. zipfile reads the list of members at once, whatever its length.
_LONGEST_READ = 4 * MiB
# Bits of a member's flags: speed of compression, size after the data, UTF-8. The others mean encryption or patches.
_KNOWN_FLAGS = 0b110 | 1 << 3 | 1 << 11
_DOS_FOLDER_OR_LINK = 0x10 | 0x400
_MEMBER_HEADER = 30


def to_printable_line(text: str) -> str:
    """Make a stranger's text fit for a message: one short line without control characters."""
    line = next(iter(text.strip().splitlines()), "")
    return "".join(c if c.isprintable() else "?" for c in line)[:160]


@contextmanager
def open_zip(archive: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip. Raises MissingFile, or BadModelZip when it is not a zip."""
    remedy = "give a zip that an exported model is in"
    if not archive.exists():
        raise MissingFile(archive, remedy)
    if not archive.is_file():
        raise BadModelZip(archive, "is not a file", remedy)
    try:
        file = _BoundedFile(archive)
    except OSError as error:
        raise BadModelZip(archive, f"cannot be read ({error.strerror})", remedy) from error
    with file:
        with _read_as_zip(archive):
            content = zipfile.ZipFile(file)
        with content:
            yield content


class _BoundedFile(io.FileIO):
    """A file that refuses to read much at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _LONGEST_READ:
            raise zipfile.BadZipFile("the list of its members is too long")
        return super().read(-1 if size is None else size)


@contextmanager
def _read_as_zip(archive: Path) -> Iterator[None]:
    try:
        yield
    # What reads a hostile or damaged zip may raise anything.
    except Exception as error:
        reason = to_printable_line(str(error)) or type(error).__name__
        raise BadModelZip(archive, f"is not a whole zip file ({reason})") from error


def check_members(
    content: zipfile.ZipFile, archive: Path, limit: Callable[[str], int | None]
) -> dict[str, zipfile.ZipInfo]:
    """Check the list of members, and return them by name.

    Args:
        content: the open zip.
        archive: its path.
        limit: the most bytes that a member of a name may have; None for a name that is not allowed.

    Raises:
        BadModelZip: a name, a kind or a size is not allowed.
    """
    members: dict[str, zipfile.ZipInfo] = {}
    for info in content.infolist():
        # zipfile cuts the name at a NUL and replaces Windows' separators, so that both spellings must be allowed.
        name = info.orig_filename
        most_bytes = limit(name) if name == info.filename else None
        if most_bytes is None:
            raise BadModelZip(archive, f"holds {name[:80]!a}, which no shared model does")
        if name in members:
            raise BadModelZip(archive, f"holds {name} twice")
        members[name] = info
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG) or info.external_attr & _DOS_FOLDER_OR_LINK:
            raise BadModelZip(archive, f"holds {name} as a link or folder instead of a file")
        if info.flag_bits & ~_KNOWN_FLAGS:
            raise BadModelZip(archive, f"holds {name} encrypted or in another way that no shared model does")
        # zipfile unpacks other compressions without a bound on the memory.
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadModelZip(archive, f"holds {name} in a compression that no shared model has")
        if info.file_size > most_bytes or info.file_size > max(_SMALL, _LARGEST_RATIO * info.compress_size):
            raise BadModelZip(archive, f"holds {name}, which unpacks to {info.file_size / MiB:,.1f} MiB, far too much")
    if sum(info.file_size for info in members.values()) > _LARGEST_TOTAL:
        raise BadModelZip(archive, f"unpacks to more than {_LARGEST_TOTAL / MiB / 1024:.0f} GiB")
    for before, info in pairwise(sorted(members.values(), key=lambda info: info.header_offset)):
        # Small zip bombs are made of members that share bytes.
        if info.header_offset < before.header_offset + _MEMBER_HEADER + before.compress_size:
            raise BadModelZip(archive, f"holds {info.filename} inside another member")
    return members


def read_chunks(content: zipfile.ZipFile, info: zipfile.ZipInfo, archive: Path) -> Iterator[bytes]:
    """Read a member in pieces; zipfile returns no more bytes than the list of members says."""
    with _read_as_zip(archive), content.open(info) as member:
        while chunk := member.read(CHUNK):
            yield chunk


def check_unpacked_size(path: Path, most_bytes: int) -> None:
    """Check a gzip file, which may be a bomb, too. Raises ValueError when it unpacks to more bytes."""
    with gzip.open(path) as file:
        file.seek(most_bytes)
        if file.read(1):
            raise ValueError(f"it unpacks to more than {most_bytes / MiB:.0f} MiB")
