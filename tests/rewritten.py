"""Files whose bytes change and whose content does not."""

from __future__ import annotations

import gzip
from pathlib import Path


def recompress(path: Path) -> None:
    """Pack the same content otherwise: a change that every reader of the file must notice."""
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=1, mtime=5))
