"""Decoder layers as a model's file stores them, before any cast, and the cache that keeps those that plans use.

The cache holds a small safetensors file with a JSON beside it:
``<cache>/<source>_layers_15-16_<first digits of the hash>/layers.safetensors`` and ``layers.json``. The hash covers the
tensors as they are stored, so it identifies the weights, wherever they came from. ``checked.json`` records for which
state of the two files (of the tensors: size, times, inode) the hash was checked, because hashing hundreds of megabytes
takes longer than everything else. A copy, or a file that was written since, is hashed again.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmreg.errors import DamagedLayers, UserError
from llmreg.files import atomic_write, read_json, write_json

TENSORS_FILE, RECORD_FILE, CHECKED_FILE = "layers.safetensors", "layers.json", "checked.json"
_HASH_DIGITS = 12


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor as its file holds it.

    Attributes:
        values: the numbers; of a GGUF tensor its quantised blocks.
        gguf_type: GGUF's name of the quantisation, ``Q4_0`` or ``F32`` for example; None for safetensors.
    """

    values: Tensor
    gguf_type: str | None = None

    def numbers(self) -> Tensor:
        """The tensor itself, dequantised to float32 where it is quantised."""
        if self.gguf_type is None:
            return self.values
        from gguf import GGMLQuantizationType, quants

        numbers = quants.dequantize(self.values.numpy(), GGMLQuantizationType[self.gguf_type])
        # A copy, since what was not quantised is a read-only view of the file.
        return torch.from_numpy(np.array(numbers, dtype=np.float32))


@dataclass(frozen=True, eq=False)
class StoredLayers:
    """Some decoder layers of a language model.

    Attributes:
        source: what a plan names: a built-in name, a path or a Hugging Face hub id.
        revision: commit on the hub, None for files.
        config: the model's configuration, as in its ``config.json``.
        layers: zero-based indices, in the order of the blocks.
        rows: order of the query and key rows: GGUF interleaves the halves that transformers' rotary embedding keeps.
        tensors: by layer index and transformers' name inside the layer.
        weights: ``pretrained``, or ``random`` where a new model's replace them.
    """

    source: str
    revision: str | None
    config: Mapping[str, Any]
    layers: tuple[int, ...]
    rows: Literal["huggingface", "gguf"]
    tensors: Mapping[tuple[int, str], StoredTensor]
    weights: Literal["pretrained", "random"] = "pretrained"

    @cached_property
    def sha256(self) -> str:
        """Digest of the layers' tensors: of each one's name, type, shape and bytes, layer by layer."""
        ordered = [(index, name) for layer in self.layers for index, name in sorted(self.tensors) if index == layer]
        # Hashing releases the interpreter's lock, so tensors are hashed in parallel.
        with ThreadPoolExecutor() as pool:
            return hashlib.sha256(b"".join(pool.map(self._digest, ordered))).hexdigest()

    def _digest(self, key: tuple[int, str]) -> bytes:
        tensor = self.tensors[key]
        kind = tensor.gguf_type or str(tensor.values.dtype).removeprefix("torch.")
        digest = hashlib.sha256(f"{key[1]} {kind} {tuple(tensor.values.shape)}".encode())
        # The bytes, without a copy.
        digest.update(tensor.values.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.digest()


class Record(BaseModel, frozen=True):
    """``layers.json``; keys that earlier versions wrote are ignored.

    Attributes:
        source: what the plan calls the model.
        revision: commit on the hub, or None.
        config: the model's configuration.
        layers: zero-based indices.
        weights, rows: see :class:`StoredLayers`.
        gguf_types: quantisation by tensor; empty for a model from safetensors.
        dtypes: the types in which the tensors are stored.
        sha256: digest of the tensors.
    """

    source: str
    revision: str | None
    config: dict[str, Any]
    layers: tuple[int, ...]
    weights: Literal["pretrained", "random"]
    rows: Literal["huggingface", "gguf"]
    gguf_types: dict[str, str]
    dtypes: tuple[str, ...]
    sha256: str


def write(stored: StoredLayers, cache: Path) -> Path:
    """Put layers into the cache, unless they are there. Returns their folder.

    Raises:
        UserError: the cache cannot be written.
    """
    config = json.loads(json.dumps(stored.config))
    if (folder := find(stored.sha256, cache)) is not None:
        record = read_layers_record(folder)
        if record.config != config:
            # An earlier version read less of a model's configuration.
            write_json(folder / RECORD_FILE, record.model_copy(update={"config": config}).model_dump())
        return folder
    name = re.sub(r"[^\w.]+", "-", stored.source).strip("-.")[-60:]
    folder = cache / f"{name}_layers_{'-'.join(map(str, stored.layers))}_{stored.sha256[:_HASH_DIGITS]}"
    tensors = {f"{index}.{name}": tensor for (index, name), tensor in stored.tensors.items()}
    record = Record(
        source=stored.source,
        revision=stored.revision,
        config=config,
        layers=stored.layers,
        weights=stored.weights,
        rows=stored.rows,
        gguf_types={name: tensor.gguf_type for name, tensor in tensors.items() if tensor.gguf_type is not None},
        dtypes=tuple(sorted({t.gguf_type or str(t.values.dtype).removeprefix("torch.") for t in tensors.values()})),
        sha256=stored.sha256,
    )
    with atomic_write(folder / TENSORS_FILE) as temporary:
        save_file({name: tensor.values for name, tensor in tensors.items()}, temporary)
    # The record is written last: its presence says that the tensors are complete.
    write_json(folder / RECORD_FILE, record.model_dump())
    return folder


def find(sha256: str, cache: Path) -> Path | None:
    """The cache folder of layers with that hash, if there is one. Raises UserError when its record is damaged."""
    paths = sorted(cache.glob(f"*_{sha256[:_HASH_DIGITS]}/{RECORD_FILE}"))
    return next((path.parent for path in paths if read_layers_record(path.parent).sha256 == sha256), None)


def find_named(source: str, layers: tuple[int, ...], weights: str, cache: Path) -> Path | None:
    """The cache folder of layers that were fetched under that name, if there is one."""
    key = (source, layers, weights)
    records = ((path.parent, read_layers_record(path.parent)) for path in sorted(cache.glob(f"*/{RECORD_FILE}")))
    return next((folder for folder, r in records if (r.source, r.layers, r.weights) == key), None)


def read_layers_record(folder: Path) -> Record:
    """The record of a cache folder. Raises UserError when it is damaged."""
    try:
        return Record.model_validate(read_json(folder / RECORD_FILE))
    except ValidationError as error:
        raise DamagedLayers(folder, "is damaged") from error


def read(folder: Path) -> StoredLayers:
    """Read a cache folder.

    Raises:
        UserError: it is damaged, or its tensors are not those that its hash names.
    """
    record = read_layers_record(folder)
    try:
        plain = load_file(folder / TENSORS_FILE)
    except (SafetensorError, OSError) as error:
        raise DamagedLayers(folder, "is damaged") from error
    names = {full: full.partition(".") for full in plain}
    tensors = {
        (int(index), name): StoredTensor(plain[full], record.gguf_types.get(full))
        for full, (index, _, name) in names.items()
    }
    stored = StoredLayers(
        record.source, record.revision, record.config, record.layers, record.rows, tensors, record.weights
    )
    status = (folder / TENSORS_FILE).stat()
    state = {
        "size": status.st_size,
        "modified_ns": status.st_mtime_ns,
        "changed_ns": status.st_ctime_ns,
        "inode": status.st_ino,
        "record": hashlib.sha256(record.model_dump_json().encode()).hexdigest(),
    }
    checked = None
    with suppress(UserError):
        checked = read_json(folder / CHECKED_FILE)
    if checked != state:
        if stored.sha256 != record.sha256:
            raise DamagedLayers(folder, f"does not hold the weights that its {RECORD_FILE} names")
        # The cache may be read-only, because others own it; then the hash is checked each time.
        with suppress(UserError):
            write_json(folder / CHECKED_FILE, state)
    return stored
