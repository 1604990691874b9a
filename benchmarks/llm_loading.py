"""Loading two decoder layers of a large language model: llmreg beside transformers' AutoModel, in one run.

Writes a model of LLaMA-3-8B's widths with 12 layers (7.3 GB, sharded, bfloat16) into a temporary folder. Then layers 5
and 6 are loaded in a process of its own each: by llmreg from the model, with and without the digest that it takes of
them once, by llmreg from the layer cache that it makes of them, and by AutoModel; in bfloat16, which all map from disk
without a copy, and in float32. Every weight of the two layers is looked at. Prints time, peak memory above the imports,
and the share of the layers' bytes that is read.

    python benchmarks/llm_loading.py [--layers 12] [--folder /with/8GB]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

WIDTH, INNER, HEADS, KEY_HEADS, VOCABULARY = 4096, 14336, 32, 8, 128256
LAYERS = (5, 6)


def write_model(folder: Path, layers: int) -> None:
    """A random LLaMA in bfloat16, one shard a layer and one for the embeddings."""
    key = WIDTH // HEADS * KEY_HEADS
    shapes = {
        "input_layernorm.weight": (WIDTH,),
        "self_attn.q_proj.weight": (WIDTH, WIDTH),
        "self_attn.k_proj.weight": (key, WIDTH),
        "self_attn.v_proj.weight": (key, WIDTH),
        "self_attn.o_proj.weight": (WIDTH, WIDTH),
        "post_attention_layernorm.weight": (WIDTH,),
        "mlp.gate_proj.weight": (INNER, WIDTH),
        "mlp.up_proj.weight": (INNER, WIDTH),
        "mlp.down_proj.weight": (WIDTH, INNER),
    }
    shards = [{f"model.layers.{n}.{name}": shape for name, shape in shapes.items()} for n in range(layers)]
    shards.append(
        {
            "model.embed_tokens.weight": (VOCABULARY, WIDTH),
            "model.norm.weight": (WIDTH,),
            "lm_head.weight": (VOCABULARY, WIDTH),
        }
    )
    weight_map = {}
    for number, shard in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02) for name, shape in shard.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
        "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fill_cache(folder: Path) -> None:
    from llmreg.networks.language_models.llm_settings import LLMSettings
    from llmreg.networks.language_models.loading import fetch, find_layers

    pinned = fetch(LLMSettings(source=str(folder), layers=LAYERS), folder / "cache")
    find_layers(pinned, folder / "cache")
    (folder / "pinned.json").write_text(pinned.model_dump_json())


def measure(way: str, folder: Path, dtype: torch.dtype) -> None:
    """Load in this process and print what it took as JSON."""
    # What loading would import, too: imports are not what is measured.
    import transformers.models.llama.modeling_llama  # noqa: F401
    from transformers import AutoModel

    from llmreg.networks.language_models.llm_settings import LLMSettings
    from llmreg.networks.language_models.loading import build_layers, find_layers
    from llmreg.networks.language_models.model_files import LocalFiles
    from llmreg.networks.language_models.reading import read_layers

    read = 0
    read_whole = LocalFiles.read

    def count_bytes(self: LocalFiles, name: str, start: int = 0, count: int | None = None) -> np.ndarray:
        nonlocal read
        content = read_whole(self, name, start, count)
        read += len(content)
        return content

    LocalFiles.read = count_bytes  # type: ignore[method-assign]
    before, start = peak_mb(), time.perf_counter()
    if way == "model":
        layers = build_layers(read_layers(str(folder), LAYERS), dtype).layers
    elif way == "first":
        pinned = LLMSettings.model_validate_json((folder / "pinned.json").read_text())
        layers = build_layers(find_layers(pinned, folder / "no cache"), dtype).layers
    elif way == "cache":
        pinned = LLMSettings.model_validate_json((folder / "pinned.json").read_text())
        layers = build_layers(find_layers(pinned, folder / "cache"), dtype).layers
    else:
        layers = AutoModel.from_pretrained(folder, dtype=dtype).layers[LAYERS[0] : LAYERS[-1] + 1]
    ready = time.perf_counter() - start
    for layer in layers:
        for parameter in layer.parameters():
            parameter.view(torch.uint8).max()
    seconds, memory = time.perf_counter() - start, peak_mb() - before
    size = sum(p.numel() * 2 for layer in layers for p in layer.parameters())
    json.dump({"ready": ready, "seconds": seconds, "memory_mb": memory, "share": read / size}, sys.stdout)


NAMES = {
    "model": "llmreg, from the model",
    "first": "llmreg, with its digest",
    "cache": "llmreg, from its cache",
    "AutoModel": "AutoModel",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--folder", type=Path, help="where the model is written (default: the temporary folder)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help=argparse.SUPPRESS)
    parser.add_argument("--measure", choices=["write", *NAMES], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure == "write":
        write_model(options.folder, options.layers)
        return fill_cache(options.folder)
    if options.measure:
        return measure(options.measure, options.folder, getattr(torch, options.dtype))
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        # In a process of its own: children inherit this one's peak memory.
        command = [sys.executable, __file__, "--folder", temporary]
        subprocess.run([*command, "--measure", "write", "--layers", str(options.layers)], check=True)
        for dtype in ("bfloat16", "float32"):
            compare(command, dtype, options.repeats)


def compare(command: list[str], dtype: str, repeats: int) -> None:
    """Measure the three in turns and print a table and the ratios."""
    measurements: dict[str, list[dict[str, float]]] = {way: [] for way in NAMES}
    # In turns, so that all see the same state of the disk's cache; the first round warms it.
    for _ in range(repeats + 1):
        for way in measurements:
            process = subprocess.run([*command, "--measure", way, "--dtype", dtype], check=True, capture_output=True)
            measurements[way].append(json.loads(process.stdout))
    best = {way: {key: min(run[key] for run in runs[1:]) for key in runs[0]} for way, runs in measurements.items()}
    sys.stdout.write(f"{dtype:<26}{'loaded (s)':>12}{'and read (s)':>14}{'peak memory (MB)':>18}\n")
    for way, run in best.items():
        sys.stdout.write(f"{NAMES[way]:<26}{run['ready']:>12.2f}{run['seconds']:>14.2f}{run['memory_mb']:>18.0f}\n")
    for way in ("model", "first", "cache"):
        ready, seconds, memory = (best["AutoModel"][key] / best[way][key] for key in ("ready", "seconds", "memory_mb"))
        sys.stdout.write(
            f"{NAMES[way]}: loaded {ready:.1f} and read {seconds:.1f} times faster, {memory:.1f} times smaller\n"
        )
    sys.stdout.write(f"llmreg read {best['model']['share']:.4f} times the layers' bytes\n\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
