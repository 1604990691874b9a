"""Atomic writes: a file is written beside its place and then renamed, so that it appears whole or not at all."""

import glob
import hashlib
import io
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmreg.errors import MissingFile, NotWritable, UnreadableFile, WouldOverwrite, WouldReplaceInput

# Bytes at each end of a gzip-compressed image that its digest covers.
_ENDS = 2**16


@contextmanager
def report_unwritable(path: Path) -> Iterator[None]:
    """Turn what the system raises in the block into NotWritable."""
    try:
        yield
    except OSError as error:
        raise NotWritable(path, error.strerror or str(error)) from error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` (same suffixes); rename it to ``path`` when the block succeeds.

    Raises:
        NotWritable: if the folder cannot be written.
    """
    temporary = path.with_name(f".partial-{secrets.token_hex(4)}-{path.name}")
    with report_unwritable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial(path: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote ``path``.

    No other process may be writing ``path`` at the same time.
    """
    for temporary in path.parent.glob(f".partial-????????-{glob.escape(path.name)}"):
        temporary.unlink(missing_ok=True)


def check_outputs(targets: Iterable[Path], sources: Iterable[Path], *, overwrite: bool) -> None:
    """Check before the work that its results replace nothing.

    Raises:
        WouldOverwrite: a target exists and ``overwrite`` is false.
        WouldReplaceInput: a target is one of the sources.
    """
    existing_sources = [source for source in sources if source.exists()]
    for target in filter(Path.exists, targets):
        if any(target.samefile(source) for source in existing_sources):
            raise WouldReplaceInput(target)
        if not overwrite:
            raise WouldOverwrite(target)


def check_writable(folder: Path) -> None:
    """Check before the work that its results can be written. Raises NotWritable when they cannot."""
    write_text(folder / ".writable", "")
    # Another process may have looked at the same time.
    (folder / ".writable").unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8), as a whole or not at all. Raises NotWritable when the folder cannot be written."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, as :func:`write_text` does."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def json_digest(content: Any) -> str:
    """SHA-256 of content as JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file. Raises UnreadableFile when it cannot be read."""
    with _open_binary(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def image_digest(path: Path) -> str:
    """A hash of an image file's content, which unlike its time of change survives copying.

    Of a gzip-compressed file, size and both ends are hashed, since its last bytes hold a checksum of the whole. Any
    other file is hashed whole, also one of several compressed blocks as bgzip makes them.

    Raises:
        UnreadableFile: the file cannot be read.
    """
    with _open_binary(path) as file:
        start = file.read(_ENDS)
        # The fourth byte says whether the header has extra fields, in which bgzip stores the sizes of its blocks.
        if start[:2] != b"\x1f\x8b" or len(start) < 4 or start[3] & 4:
            return file_digest(path)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _ENDS, 0))
        return hashlib.sha256(b"".join([str(size).encode(), start, file.read()])).hexdigest()


@contextmanager
def _open_binary(path: Path) -> Iterator[io.BufferedReader]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise UnreadableFile(path, f"cannot be read ({error.strerror})") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises MissingFile, or UnreadableFile when it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFile(path) from None
    except (ValueError, RecursionError) as error:
        raise UnreadableFile(path, f"is not valid JSON ({error})", "mend or restore the file") from error
    except OSError as error:
        raise UnreadableFile(path, f"cannot be read ({error.strerror})") from error
