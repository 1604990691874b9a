"""Files appear whole or not at all: everything is written beside its place and then renamed."""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmreg.errors import UserError

# So much of each end of a packed image is looked at.
_ENDS = 2**16


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` (same suffixes); rename it to ``path`` when the block succeeds.

    Raises:
        UserError: if the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".partial-", suffix="-" + path.name, dir=path.parent)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}. Choose a folder that you may write to.") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private; give them the permissions that open() would have given.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial(path: Path) -> None:
    """Remove what processes that were killed while they wrote ``path`` have left of it; not while another writes it."""
    for temporary in path.parent.glob(f".partial-????????-{glob.escape(path.name)}"):
        temporary.unlink(missing_ok=True)


def check_new(targets: Iterable[Path], sources: Iterable[Path], overwrite: bool) -> None:
    """Find out before the work whether its results would replace something.

    Raises:
        UserError: one is there and may not be overwritten, or is what the work reads.
    """
    read = [source for source in sources if source.exists()]
    for target in targets:
        if not target.exists():
            continue
        if any(target.samefile(source) for source in read):
            raise UserError(f"{target} would replace what is read: choose another --output.")
        if not overwrite:
            raise UserError(f"{target} exists: choose another --output, or add --overwrite.")


def check_writable(folder: Path) -> None:
    """Find out before the work whether its results can be written. Raises UserError when they cannot."""
    with written_whole(folder / ".writable"):
        pass
    # Another process may have looked at the same time.
    (folder / ".writable").unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def json_digest(content: Any) -> str:
    """SHA-256 of content as JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file. Raises UserError when it cannot be read."""
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def image_digest(path: Path) -> str:
    """A hash that tells the content of an image's file from others; times of change do not: copying changes them.

    A file that gzip has packed is known by its size and both ends, since the last bytes hold a checksum of the whole.
    Any other is read whole, also one of several packed blocks, as bgzip makes them.

    Raises:
        UserError: the file cannot be read.
    """
    with _opened(path) as file:
        start = file.read(_ENDS)
        # The fourth byte says whether there are extra fields, where bgzip counts blocks.
        if start[:2] != b"\x1f\x8b" or len(start) < 4 or start[3] & 4:
            return file_digest(path)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _ENDS, 0))
        return hashlib.sha256(b"".join([str(size).encode(), start, file.read()])).hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error


def read_json(path: Path) -> Any:
    """Raises UserError when the file is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}). Mend or restore the file.") from error
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
