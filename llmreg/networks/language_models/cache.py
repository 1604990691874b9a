"""The layer cache: the few layers that a plan uses, as one small safetensors file with a JSON beside it.

``<cache>/<source>_layers_15-16_<first digits of the hash>/layers.safetensors`` and ``layers.json``. The hash covers the
tensors as they are stored, so it identifies the weights, wherever they came from. ``checked.json`` records for which
state of the two files (of the tensors: size, times, inode) the hash was checked, because hashing hundreds of megabytes
takes longer than everything else. A copy, or a file that was written since, is hashed again.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from llmreg.errors import UserError
from llmreg.files import atomic_write, read_json, write_json
from llmreg.networks.language_models.layer_errors import DamagedLayers
from llmreg.networks.language_models.stored import StoredLayers, StoredTensor

TENSORS_FILE, RECORD_FILE, CHECKED_FILE = "layers.safetensors", "layers.json", "checked.json"
_HASH_DIGITS = 12


class Record(BaseModel):
    """``layers.json``.

    Attributes:
        source: what the plan calls the model.
        revision: commit on the hub, or None.
        config: the model's configuration.
        layers: zero-based indices.
        weights, rows: see :class:`llmreg.networks.language_models.stored.StoredLayers`.
        gguf_types: quantisation by tensor; empty for a model from safetensors.
        dtypes: the types in which the tensors are stored.
        sha256: digest of the tensors.
    """

    # Earlier versions wrote more.
    model_config = ConfigDict(extra="ignore", frozen=True)

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
        record = read_record(folder)
        if record.config != config:
            # An earlier version read less of a model's configuration.
            write_json(folder / RECORD_FILE, record.model_copy(update={"config": config}).model_dump())
        return folder
    slug = re.sub(r"[^\w.]+", "-", stored.source).strip("-.")[-60:]
    numbers = "-".join(map(str, stored.layers))
    folder = cache / f"{slug}_layers_{numbers}_{stored.sha256[:_HASH_DIGITS]}"
    tensors = {f"{index}.{name}": tensor for (index, name), tensor in stored.tensors.items()}
    gguf_types = {name: tensor.gguf_type for name, tensor in tensors.items() if tensor.gguf_type is not None}
    record = Record(
        source=stored.source,
        revision=stored.revision,
        config=config,
        layers=stored.layers,
        weights=stored.weights,
        rows=stored.rows,
        gguf_types=gguf_types,
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
    alike = (path.parent for path in sorted(cache.glob(f"*_{sha256[:_HASH_DIGITS]}/{RECORD_FILE}")))
    return next((folder for folder in alike if read_record(folder).sha256 == sha256), None)


def find_named(source: str, layers: tuple[int, ...], weights: str, cache: Path) -> Path | None:
    """The cache folder of layers that were fetched under that name, if there is one."""
    key = (source, layers, weights)
    records = ((path.parent, read_record(path.parent)) for path in sorted(cache.glob(f"*/{RECORD_FILE}")))
    return next((folder for folder, r in records if (r.source, r.layers, r.weights) == key), None)


def read_record(folder: Path) -> Record:
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
    record = read_record(folder)
    try:
        plain = load_file(folder / TENSORS_FILE)
    except (SafetensorError, OSError) as error:
        raise DamagedLayers(folder, "is damaged") from error
    tensors: dict[tuple[int, str], StoredTensor] = {}
    for full, values in plain.items():
        index, _, name = full.partition(".")
        tensors[int(index), name] = StoredTensor(values, record.gguf_types.get(full))
    stored = StoredLayers(
        record.source,
        record.revision,
        record.config,
        record.layers,
        record.rows,
        tensors,
        record.weights,
    )
    state = _state_of(folder / TENSORS_FILE, record)
    if _last_checked(folder) != state:
        if stored.sha256 != record.sha256:
            raise DamagedLayers(folder, f"does not hold the weights that its {RECORD_FILE} names")
        # The cache may be read-only, because others own it; then the hash is checked each time.
        with suppress(UserError):
            write_json(folder / CHECKED_FILE, state)
    return stored


def _state_of(path: Path, record: Record) -> dict[str, Any]:
    state = path.stat()
    content = record.model_dump_json()
    return {
        "size": state.st_size,
        "modified_ns": state.st_mtime_ns,
        "changed_ns": state.st_ctime_ns,
        "inode": state.st_ino,
        "record": hashlib.sha256(content.encode()).hexdigest(),
    }


def _last_checked(folder: Path) -> Any:
    with suppress(UserError):
        return read_json(folder / CHECKED_FILE)
    return None
