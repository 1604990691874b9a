"""What a derived file was made of: when it changes, the file is made again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from llmreg.dataset import Case
from llmreg.errors import UserError

Sources = dict[str, str | list[int]]

# So much of a file's beginning and of its end is looked at.
_ENDS = 2**16


def sources_of(case: Case) -> Sources:
    """What tells the content of a case's files from others, by their role. Raises UserError when one cannot be read."""
    files = {"image": case.image, "label": case.label, "mask": case.mask}
    found: Sources = {role: compressed_digest(path) for role, path in files.items() if path is not None}
    return found if case.annotated_labels is None else found | {"annotated_labels": list(case.annotated_labels)}


def compressed_digest(path: Path) -> str:
    """What tells a .gz file's content from others without reading it all: a hash of its size and both of its ends.

    The last bytes hold a checksum of the whole. Times of change would not do: copies, clones and mounts change them.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            ends = [file.read(_ENDS)]
            file.seek(max(size - _ENDS, 0))
            ends.append(file.read())
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    return hashlib.sha256(b"".join([str(size).encode(), *ends])).hexdigest()
