"""Damage in image files that ITK's readers pass over in silence."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

# Format and offset of what is looked at, by the header's length; of nifti1.h and nifti2.h.
_FIELDS = {
    348: {
        "magic": ("4s", 344),
        "dim": ("8h", 40),
        "datatype": ("2h", 70),
        "pixdim": ("8f", 76),
        "vox_offset": ("f", 108),
        "codes": ("2h", 252),
        "qform": ("6f", 256),
        "sform": ("12f", 280),
    },
    540: {
        "magic": ("4s", 4),
        "dim": ("8q", 16),
        "datatype": ("2h", 12),
        "pixdim": ("8d", 104),
        "vox_offset": ("q", 168),
        "codes": ("2i", 344),
        "qform": ("6d", 352),
        "sform": ("12d", 400),
    },
}


def is_whole_nifti(path: Path, voxels: int) -> bool:
    """Whether a NIfTI file that was just written has all of its bytes; True of files in other formats.

    Args:
        path: .nii or .nii.gz.
        voxels: bytes of the voxels.
    """
    header = 352
    if path.name.endswith(".nii"):
        return path.stat().st_size >= header + voxels
    if not path.name.endswith(".nii.gz"):
        return True
    with path.open("rb") as stream:
        # gzip ends with the length of what it holds, modulo 2^32.
        if stream.seek(0, 2) < 18:
            return False
        stream.seek(-4, 2)
        (length,) = struct.unpack("<I", stream.read(4))
    return bool(length == (header + voxels) % 2**32)


def storage_problem(path: Path) -> str | None:
    """What ITK would pass over in silence.

    Its NIfTI reader turns NaN into 0, lacking bytes into zeros, a voxel size of 0 into 1 mm and a negative one into a
    mirrored image. Reference: nifti_convert_nhdr2nim and nifti_read_buffer in nifti1_io.c.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error):
        return f"{path} is truncated or damaged: copy or download it again."
    if not content:
        return f"{path} is empty (0 bytes): copy or download it again."
    order, header = _nifti_header(content)
    if header.get("magic", b"")[:2] not in (b"n+", b"ni"):
        return None  # Another format.
    shape = header["dim"][1 : 1 + max(0, min(7, header["dim"][0]))]
    spacing = header["pixdim"][1:4]
    if any(n > 1 and not 0 < s < math.inf for n, s in zip(shape, spacing, strict=False)):
        sizes = "x".join(f"{s:g}" for s in spacing)
        return f"{path} gives the voxel size {sizes} in its header: write three positive lengths in mm (pixdim)."
    by_quaternion, by_matrix = header["codes"]
    place = header["sform"] if by_matrix > 0 else header["qform"] if by_quaternion > 0 else ()
    if not np.isfinite(place).all():
        return f"{path} holds NaN in the position or direction of its header: write its geometry anew."
    offset = header["vox_offset"]
    if header["magic"][:2] == b"ni" or not math.isfinite(offset):
        return None  # The voxels are in another file, or ITK refuses the header.
    kind, bits = header["datatype"]
    count = int(np.prod(np.maximum(shape, 1)))
    lacking = int(offset) + count * bits // 8 - len(content)
    if lacking > 0:
        return f"{path} is truncated ({lacking} bytes are missing): copy or download it again."
    real = {16: "f4", 64: "f8"}.get(kind)
    if real and not np.isfinite(np.frombuffer(content, order + real, count, int(offset))).all():
        return f"{path} holds NaN or infinite values: replace them by numbers."
    return None


def _nifti_header(content: bytes) -> tuple[str, dict[str, Any]]:
    """The byte order and the fields, of which single numbers stand alone; no fields when the file is no NIfTI file."""
    for order in "<>":
        for length, fields in _FIELDS.items():
            if content[:4] == struct.pack(order + "i", length) and len(content) >= length:
                found = {name: struct.unpack_from(order + kind, content, at) for name, (kind, at) in fields.items()}
                return order, {name: values[0] if len(values) == 1 else values for name, values in found.items()}
    return "", {}
