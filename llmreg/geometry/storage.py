"""Damage in image files that ITK's readers pass over in silence."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np


def storage_problem(path: Path) -> str | None:
    """What ITK would pass over in silence: its NIfTI reader turns NaN into 0 and lacking bytes into zeros.

    Reference: nifti_read_buffer in nifti1_io.c; header offsets of nifti1.h and nifti2.h.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error):
        return f"{path} is truncated or damaged: copy or download it again."
    for order in "<>":
        if content[:4] == struct.pack(order + "i", 348) and len(content) >= 348:
            shape = struct.unpack_from(order + "8h", content, 40)
            kind, bits = struct.unpack_from(order + "hh", content, 70)
            start = struct.unpack_from(order + "f", content, 108)[0]
            if content[344:347] != b"n+1" or not math.isfinite(start):
                return None  # The voxels are in another file, or ITK refuses the header.
            offset = int(start)
        elif content[:4] == struct.pack(order + "i", 540) and len(content) >= 540:
            kind, bits = struct.unpack_from(order + "hh", content, 12)
            shape = struct.unpack_from(order + "8q", content, 16)
            offset = struct.unpack_from(order + "q", content, 168)[0]
        else:
            continue
        count = int(np.prod(np.maximum(shape[1 : 1 + max(0, min(7, shape[0]))], 1)))
        lacking = offset + count * bits // 8 - len(content)
        if lacking > 0:
            return f"{path} is truncated ({lacking} bytes are missing): copy or download it again."
        real = {16: "f4", 64: "f8"}.get(kind)
        if real and not np.isfinite(np.frombuffer(content, order + real, count, offset)).all():
            return f"{path} holds NaN or infinite values: replace them by numbers."
    return None
