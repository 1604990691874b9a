"""Decoder layers as a checkpoint stores them: read, hashed and cached before any cast."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor as its file holds it.

    Attributes:
        values: the numbers; of a GGUF tensor its quantised blocks.
        gguf_type: GGUF's name of the quantisation, ``Q4_0`` or ``F32`` for example; None for safetensors.
    """

    values: Tensor
    gguf_type: str | None = None

    def as_bytes(self) -> Tensor:
        """The bytes, without a copy."""
        return self.values.contiguous().reshape(-1).view(torch.uint8)

    def numbers(self) -> Tensor:
        """The tensor itself, dequantised to float32 where it is quantised."""
        if self.gguf_type is None:
            return self.values
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        numbers = dequantize(self.values.numpy(), GGMLQuantizationType[self.gguf_type])
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
        digest.update(tensor.as_bytes().numpy().data)
        return digest.digest()
