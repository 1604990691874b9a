"""Reading single pretrained decoder layers, and only their tensors, as frozen modules."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from llmreg.errors import UserError
from llmreg.network.llm.sources import LLMSource

FAMILIES = ("llama",)
_GGUF_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}


@dataclass(frozen=True, eq=False)
class LoadedLayers:
    """Frozen decoder layers in the order asked for.

    Attributes:
        config: the language model's configuration.
        layers: one module a layer, in evaluation mode and without gradients.
        sha256: digest of the layers' tensors as they are stored, before any cast.
    """

    config: LlamaConfig
    layers: list[nn.Module]
    sha256: str


def load_layers(source: LLMSource, layers: Sequence[int], dtype: torch.dtype) -> LoadedLayers:
    """Read decoder layers of a language model; nothing else of it is read.

    Args:
        source: from :func:`llmreg.network.llm.sources.resolve`.
        layers: zero-based layer indices.
        dtype: type of the frozen weights.

    Raises:
        UserError: a file is damaged, its family is unknown, or a layer does not exist.
    """
    try:
        reader: _GGUF | _HuggingFace = _GGUF(source.path) if source.kind == "gguf" else _HuggingFace(source.path)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"{source.path} cannot be read as a language model ({error}); get it again.") from error
    config = reader.config
    count = int(config.num_hidden_layers)
    for index in layers:
        if not 0 <= index < count:
            raise UserError(f"{source.path} has layers 0 to {count - 1}, so layer {index} cannot be used.")
    digest = hashlib.sha256()
    modules: list[nn.Module] = []
    for index in layers:
        with torch.device("meta"):
            module = LlamaDecoderLayer(config, layer_idx=0)
        state: dict[str, Tensor] = {}
        for name, expected in module.state_dict().items():
            try:
                tensor = reader.tensor(index, name, digest)
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                raise UserError(f"{source.path} lacks a readable {name} of layer {index}; get it again.") from error
            if tensor.shape != expected.shape:
                raise UserError(
                    f"{source.path}: {name} of layer {index} is {tuple(tensor.shape)}, but its configuration "
                    f"says {tuple(expected.shape)}; get the model again."
                )
            state[name] = tensor.to(dtype)
        module.load_state_dict(state, assign=True)
        modules.append(module.requires_grad_(False).eval())
    return LoadedLayers(config, modules, digest.hexdigest())


class _HuggingFace:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        raw: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        _check_family(str(raw.get("model_type")), folder / "config.json")
        self.config = _configured(LlamaConfig.from_dict(raw))
        index = folder / "model.safetensors.index.json"
        self._files: dict[str, str] | None = None
        if not (folder / "model.safetensors").is_file():
            self._files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]

    def tensor(self, index: int, name: str, digest: hashlib._Hash) -> Tensor:
        full = f"model.layers.{index}.{name}"
        file = "model.safetensors" if self._files is None else self._files[full]
        with safe_open(self._folder / file, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(full).contiguous()
        digest.update(f"{name} {tensor.dtype}".encode())
        digest.update(tensor.view(torch.uint8).numpy().data)
        return tensor


class _GGUF:
    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        reader = GGUFReader(path)
        family = self._value(reader, "general.architecture")
        _check_family(str(family), path)
        head = f"{family}."
        self._heads = int(self._value(reader, head + "attention.head_count"))
        self._key_heads = int(self._value(reader, head + "attention.head_count_kv", self._heads))
        self.config = _configured(
            LlamaConfig(
                hidden_size=int(self._value(reader, head + "embedding_length")),
                intermediate_size=int(self._value(reader, head + "feed_forward_length")),
                num_hidden_layers=int(self._value(reader, head + "block_count")),
                num_attention_heads=self._heads,
                num_key_value_heads=self._key_heads,
                rms_norm_eps=float(self._value(reader, head + "attention.layer_norm_rms_epsilon")),
                max_position_embeddings=int(self._value(reader, head + "context_length")),
                rope_parameters={
                    "rope_type": "default",
                    "rope_theta": float(self._value(reader, head + "rope.freq_base", 10000.0)),
                },
            )
        )
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

    @staticmethod
    def _value(reader: Any, key: str, default: Any = None) -> Any:
        field = reader.get_field(key)
        if field is None:
            if default is None:
                raise KeyError(f"{key} is missing")
            return default
        return field.contents()

    def tensor(self, index: int, name: str, digest: hashlib._Hash) -> Tensor:
        from gguf.quants import dequantize

        stored = self._tensors[f"blk.{index}.{_GGUF_NAMES[name]}"]
        digest.update(f"{name} {stored.tensor_type.name}".encode())
        digest.update(np.ascontiguousarray(stored.data).view(np.uint8).data)
        # A copy, since unquantized tensors are read-only views of the mapped file.
        tensor = torch.from_numpy(np.array(dequantize(stored.data, stored.tensor_type), dtype=np.float32))
        if name == "self_attn.q_proj.weight":
            return undo_rotary_permutation(tensor, self._heads)
        if name == "self_attn.k_proj.weight":
            return undo_rotary_permutation(tensor, self._key_heads)
        return tensor


def undo_rotary_permutation(weight: Tensor, heads: int) -> Tensor:
    """Rows of a GGUF query or key projection in Hugging Face's order.

    llama.cpp rotates neighbouring rows (0, 1), (2, 3), ... of a head; transformers rotates row i with row i + d/2.
    The convertor (``LlamaModel.permute`` in llama.cpp's convert_hf_to_gguf.py) interleaves the halves; this undoes it.
    """
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _check_family(family: str, path: Path) -> None:
    if family not in FAMILIES:
        raise UserError(f"{path}: model family '{family}' is not supported; known: {', '.join(FAMILIES)}.")


def _configured(config: LlamaConfig) -> LlamaConfig:
    config._attn_implementation = "sdpa"
    config.attention_dropout = 0.0
    return config
