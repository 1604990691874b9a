"""Files appear whole or not at all: everything is written beside its place and then renamed."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmreg.errors import UserError


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
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
