"""Reading the tensors of chosen decoder layers from a model's files, and no other bytes of its weights."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from typing_extensions import override

from llmreg.errors import UserError
from llmreg.networks.language_models.families import UNKNOWN_ROTARY, Family, build_config, family_of, head_dim
from llmreg.networks.language_models.stored import StoredLayers, StoredTensor

INDEX_FILE, SINGLE_FILE = "model.safetensors.index.json", "model.safetensors"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# The format's own limit: a damaged file must not ask for more memory than there is.
_LARGEST_HEADER = 100_000_000
# From so many numbers on, a bar shows the progress.
_MANY_WEIGHTS = 50_000_000
# Keys of a transformers configuration, and their names in a GGUF file below "<architecture>.".
_GGUF_CONFIG = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "max_position_embeddings": "context_length",
}
# What each rotary frequency is divided by, and the constants that LLaMA 3.1 and 3.2 share.
_ROPE_FACTORS = "rope_freqs.weight"
_LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_GGUF_FAMILIES = ("llama", "qwen2", "qwen3")


class Files(Protocol):
    """The files of a Hugging Face model, on this computer or on the hub."""

    where: str
    revision: str | None

    def names(self) -> set[str]:
        """The names of all files."""

    def json(self, name: str) -> dict[str, Any]:
        """The content of a JSON file."""

    def read(self, name: str, start: int, count: int) -> NDArray[np.uint8]:
        """Bytes of a file."""


class LocalFiles(Files):
    """A Hugging Face model in a folder."""

    revision: str | None = None

    def __init__(self, folder: Path) -> None:
        self.where = str(folder)
        self._folder = folder

    @override
    def names(self) -> set[str]:
        return {path.name for path in self._folder.iterdir()}

    @override
    def json(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self._folder / name).read_text(encoding="utf-8"))
        return content

    @override
    def read(self, name: str, start: int, count: int) -> NDArray[np.uint8]:
        if start + count > (self._folder / name).stat().st_size:
            raise OSError(f"{name} ends too early")
        # Mapped, so that pages are read when they are used, and processes share them. Copy-on-write, because torch
        # needs a writable array.
        return np.memmap(self._folder / name, np.uint8, mode="c", offset=start, shape=(count,))


class SafetensorsModel:
    """A Hugging Face model of which single tensors are read.

    Args:
        source: what the plan calls the model.
        files: its files.

    Raises:
        UserError: there are no safetensors, or the family is unknown.
        OSError, ValueError, KeyError: a file is damaged or missing.
    """

    def __init__(self, source: str, files: Files) -> None:
        self._source, self._files = source, files
        names = files.names()
        if "config.json" not in names:
            raise UserError(f"{files.where} holds no config.json; give a Hugging Face model.")
        if not {INDEX_FILE, SINGLE_FILE} & names:
            pickled = any(name.endswith((".bin", ".pth", ".pt")) for name in names)
            raise UserError(
                f"{files.where} holds no {SINGLE_FILE} or {INDEX_FILE}; "
                + ("its pickled weights could run code: convert them to safetensors." if pickled else "get it again.")
            )
        self.config: dict[str, Any] = files.json("config.json")
        self.family = family_of(self.config, files.where)
        self._headers: dict[str, _Header] = {}
        self._file_of: Mapping[str, str]
        if SINGLE_FILE in names:
            self._file_of = dict.fromkeys(self._header(SINGLE_FILE).tensors, SINGLE_FILE)
        else:
            self._file_of = files.json(INDEX_FILE)["weight_map"]

    def layers(self, indices: Sequence[int]) -> StoredLayers:
        """Read decoder layers.

        Raises:
            UserError: a layer does not exist, or its tensors do not fit the configuration.
            OSError, ValueError, KeyError: a file is damaged or missing.
        """
        shapes = expected_shapes(self.config, self.family, indices, self._files.where)
        names = {key: self._prefix(key[0]) + key[1] for key in shapes}
        for key, name in names.items():
            if name not in self._file_of:
                raise UserError(f"{self._files.where} lacks {name}: get the model again.")
            _check_shape(name, self._info(name)["shape"], shapes[key], self._files.where)
        tensors = {}
        total = sum(math.prod(shape) for shape in shapes.values())
        with tqdm(total=total, unit_scale=True, desc="Read weights", disable=total < _MANY_WEIGHTS) as bar:
            for key, name in names.items():
                tensors[key] = StoredTensor(self._read(name, shapes[key]))
                bar.update(math.prod(shapes[key]))
        return StoredLayers(self._source, self._files.revision, self.config, tuple(indices), "huggingface", tensors)

    def _read(self, name: str, shape: Sequence[int]) -> Tensor:
        info = self._info(name)
        if info["dtype"] not in _DTYPES:
            raise UserError(f"{self._files.where}: {name} is of type {info['dtype']}; known: {', '.join(_DTYPES)}.")
        dtype = _DTYPES[info["dtype"]]
        start, end = info["data_offsets"]
        if end - start != math.prod(info["shape"]) * dtype.itemsize:
            raise UserError(f"{self._files.where}: {name} has another size than its shape says; get the model again.")
        file = self._file_of[name]
        raw = self._files.read(file, self._header(file).data_start + start, end - start)
        if raw.ctypes.data % dtype.itemsize:
            raw = raw.copy()  # The safetensors library aligns tensors; other programs may not.
        return torch.from_numpy(raw).view(dtype).view(tuple(shape))

    def _info(self, name: str) -> dict[str, Any]:
        return self._header(self._file_of[name]).tensors[name]

    def _header(self, file: str) -> _Header:
        if file not in self._headers:
            # Eight bytes say how long the JSON behind them is (huggingface.co/docs/safetensors).
            size = int.from_bytes(self._files.read(file, 0, 8).tobytes(), "little")
            content = self._files.read(file, 8, min(size, _LARGEST_HEADER)).tobytes()
            self._headers[file] = _Header(json.loads(content), 8 + len(content))
        return self._headers[file]

    def _prefix(self, index: int) -> str:
        """The prefix of the names of a layer's tensors, such as ``model.layers.15.``."""
        last = re.escape(self.family.first_norm)
        pattern = re.compile(rf"((?:.*\.)?{self.family.container}\.{index}\.){last}")
        for name in self._file_of:
            if match := pattern.fullmatch(name):
                return match.group(1)
        raise UserError(f"{self._files.where} lacks the tensors of layer {index}: get the model again.")


@dataclass(frozen=True)
class _Header:
    """The head of a safetensors file: each tensor's dtype, shape and place, and where the data begin."""

    tensors: dict[str, dict[str, Any]]
    data_start: int


class GGUFModel:
    """A GGUF file of which single tensors are read.

    Args:
        source: what the plan calls the model.
        path: the file.

    Raises:
        UserError: the family is unknown.
        OSError, ValueError, KeyError: the file is damaged.
    """

    def __init__(self, source: str, path: Path) -> None:
        from gguf import GGUFReader

        self._source, self._path = source, path
        self._reader = GGUFReader(path)
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self._architecture = str(self._value("general.architecture"))
        if self._architecture not in _GGUF_FAMILIES:
            raise UserError(
                f"{path}: GGUF files of the family '{self._architecture}' are not supported; known: "
                f"{', '.join(_GGUF_FAMILIES)}. Use the model's safetensors."
            )
        values = {key: self._value(f"{self._architecture}.{name}") for key, name in _GGUF_CONFIG.items()}
        self.config: dict[str, Any] = {"model_type": self._architecture} | {
            key: value for key, value in values.items() if value is not None
        }
        self.config |= self._rotary()
        self.family = family_of(self.config, str(path))

    def layers(self, indices: Sequence[int]) -> StoredLayers:
        """Read decoder layers; raises like :meth:`SafetensorsModel.layers`."""
        from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

        [architecture] = [key for key, name in MODEL_ARCH_NAMES.items() if name == self._architecture]
        names = get_tensor_name_map(architecture, int(self.config["num_hidden_layers"]))
        tensors = {}
        for (index, name), shape in expected_shapes(self.config, self.family, indices, str(self._path)).items():
            full = names.get_name(f"model.layers.{index}.{name}", try_suffixes=(".weight", ".bias"))
            if full not in self._tensors:
                raise UserError(f"{self._path} lacks {full}: get the model again.")
            tensor = self._tensors[full]
            _check_shape(full, [int(n) for n in reversed(tensor.shape)], shape, str(self._path))
            # A copy, because the reader maps the file, which may be removed.
            tensors[index, name] = StoredTensor(torch.from_numpy(tensor.data.copy()), tensor.tensor_type.name)
        return StoredLayers(self._source, None, self.config, tuple(indices), "gguf", tensors)

    def _rotary(self) -> dict[str, Any]:
        """``rope_parameters`` as transformers has them, and a note where they cannot express the file's scaling."""
        prefix = f"{self._architecture}.rope."
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(self._value(prefix + "freq_base") or 1e4)}
        kind = self._value(prefix + "scaling.type") or "none"
        # The first files called the key scale_linear.
        factor = self._value(prefix + "scaling.factor") or self._value(prefix + "scale_linear")
        if _ROPE_FACTORS in self._tensors:
            # Of LLaMA 3.1's scaling, the file holds the result: the divisor of each frequency.
            divisors = torch.from_numpy(np.array(self._tensors[_ROPE_FACTORS].data, np.float32))
            llama3 = rope | {"rope_type": "llama3", "factor": float(divisors.max())} | _LLAMA3_ROPE
            if torch.allclose(self._frequencies(rope) / divisors, self._frequencies(llama3), rtol=1e-3):
                return {"rope_parameters": llama3}
            kind = _ROPE_FACTORS
        elif kind in ("none", "linear"):
            linear = {"rope_type": "linear", "factor": float(factor or 1.0)}
            return {"rope_parameters": rope | (linear if factor else {})}
        return {"rope_parameters": rope, UNKNOWN_ROTARY: str(kind)}

    def _frequencies(self, rope: dict[str, Any]) -> Tensor:
        config = build_config(self.config | {"rope_parameters": rope}, family_of(self.config, str(self._path)))
        if rope["rope_type"] == "default":
            dim = head_dim(config)
            return 1.0 / float(rope["rope_theta"]) ** (torch.arange(0, dim, 2).float() / dim)
        frequencies: Tensor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))[0]
        return frequencies

    def _value(self, key: str) -> Any:
        field = self._reader.get_field(key)
        return None if field is None else field.contents()


def undo_rotary_permutation(values: Tensor, heads: int) -> Tensor:
    """Rows of a GGUF query or key projection (or its bias) in Hugging Face's order.

    llama.cpp rotates neighbouring rows (0, 1), (2, 3), ... of a head; transformers rotates row i with row i + d/2.
    The convertor (``LlamaModel.permute`` in llama.cpp's convert_hf_to_gguf.py) interleaves the halves; this undoes it.
    Only the family ``llama`` is converted so.
    """
    rows = len(values)
    halves = values.reshape(heads, rows // heads // 2, 2, *values.shape[1:])
    return halves.transpose(1, 2).reshape(values.shape)


def expected_shapes(
    config: Mapping[str, Any], family: Family, layers: Iterable[int], where: str
) -> dict[tuple[int, str], tuple[int, ...]]:
    """The tensors that the family's layers have, with their shapes."""
    built = build_config(config, family)
    count = int(built.num_hidden_layers)
    shapes: dict[tuple[int, str], tuple[int, ...]] = {}
    for index in layers:
        if not 0 <= index < count:
            raise UserError(f"{where} has layers 0 to {count - 1}, so layer {index} cannot be used.")
        with torch.device("meta"):
            layer = family.build_layer(built, index)
        shapes |= {(index, name): tuple(value.shape) for name, value in layer.state_dict().items()}
    return shapes


def _check_shape(name: str, shape: Sequence[int], expected: tuple[int, ...], where: str) -> None:
    if tuple(shape) != expected:
        raise UserError(
            f"{where}: {name} is {tuple(shape)}, but its configuration says {expected}; get the model again."
        )
