"""Writes ``tests/data/v0_1``: small files of every format that llmreg 0.1.0 wrote, and the fields it predicted.

This ran once, with the code of commit 4a56d6a, whose internals it uses here and there. It cannot run with later code,
and need not: it is kept to tell how the files came about. On a checkout of that commit at ``$OLD``::

    cd $OLD && OMP_NUM_THREADS=1 PYTHONPATH=$OLD python /path/to/tests/data/write_v0_1.py /path/to/tests/data/v0_1

Everything is made in :data:`WORK`, a place that no computer has by itself, because version 0.1.0 wrote absolute paths
into some files. Then each of its folders is packed into an archive.
"""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
import shutil
import signal
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import gguf
import gguf.quants
import numpy as np
import SimpleITK as sitk
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

WORK = Path("/tmp/llmreg_v0_1")
HOME = WORK / "home"
NAME = "Dataset901_Stored"
RAW, RESULTS = HOME / "raw" / NAME, HOME / "results" / NAME
LLM, GGUF = WORK / "language_models" / "tiny_llama", WORK / "language_models" / "tiny.gguf"
# Files that nobody reads again: pictures, pages, and a record of files on that computer's disk.
LEFT_OUT = ("plan_report.html", "checked.json", "progress.png")

# The plans that all others are changed copies of. Types of float32 give the same fields, up to rounding, on hardware
# with and without bfloat16.
SMALL = (
    "network.width=1", "network.llm.dtype=float32", "network.llm.lora.r=2", "network.llm.lora.alpha=4",
    "training.autocast=none", "training.steps_per_epoch=2", "training.epochs=2", "training.validation_pairs=1",
    "training.learning_rate=0.01",
)  # fmt: skip
WIDE = {
    "downsampling": 2, "padded_size": [64, 64, 32], "network_shape": [32, 32, 16], "token_grid": [2, 2, 1],
    "token_length": 4, "recompute": True, "memory_gb": 1.0,
}  # fmt: skip
# Name of the plans: configuration, further changes of the plans, network if it is not LLM-Morph.
MODELS: dict[str, tuple[str, tuple[str, ...], str | None]] = {
    "bfloat16": ("full", (
        "network.llm.dtype=bfloat16", "training.autocast=bfloat16", "network.cost_volume=0",
        "network.llm.attention=causal", "network.llm.rotary=1d",
    ), None),
    "velocity": ("wide", (
        f"configurations.wide={json.dumps(WIDE)}", "network.field=velocity", "network.llm.rotary=3d",
        "network.llm.layers=[0]", "network.final_norm=false", "network.position_embedding=false",
        "network.normalization=none",
    ), None),
    "direct": ("full", (
        "network.width=4", "network.reshape=direct", "network.accumulate=sum", "network.cost_volume=0",
    ), None),
    "gguf": ("full", (
        f"network.llm.source={GGUF}", "network.llm.layers=[0]", "network.llm.rotary=3d",
    ), None),
    "lora_of_all": ("full", (
        'network.llm.lora.targets=["q_proj","k_proj","v_proj","o_proj","gate_proj","up_proj","down_proj"]',
    ), None),
    "no_lora": ("full", ("network.llm.lora=null",), None),
    "random_weights": ("full", ("network.llm.weights=random", "training.bidirectional=true"), None),
    "vit": ("full", ("network.blocks=vit",), None),
    "adapters": ("full", ("network.blocks=adapters",), None),
    "none": ("half", ("network.blocks=none",), None),
    "templates": ("half", ("network.blocks=none", "prealignment.method=template"), None),
    "voxelmorph": ("full", ("network.size=small",), "voxelmorph"),
    "dual_pyramid": ("full", ("network.width=2",), "dual_pyramid"),
    "transmorph": ("full", ("network.stages=3",), "transmorph"),
    "mambamorph": ("full", ("network.features=false",), "mambamorph"),
}  # fmt: skip
# Standard deviations of the weights that predict fields, so that fields are of some voxels.
HEADS = {
    "none": 0.04, "templates": 0.04, "vit": 0.03, "direct": 0.015, "transmorph": 0.05, "voxelmorph": 0.15,
    "bfloat16": 0.025,
}  # fmt: skip
DEFAULT_HEAD = 0.07


def run(command: str, *arguments: object, code: int = 0) -> None:
    """Run a command of llmreg in this process; its exit code must be ``code``."""
    words = [str(argument) for argument in arguments]
    sys.argv = [f"llmreg_{command}", *words]
    exit_code = importlib.import_module(f"llmreg.commands.{command}").main(words)
    assert exit_code == code, (command, words, exit_code)


def main(target: Path) -> None:
    import llmreg

    print("The code is that of", Path(llmreg.__file__).parents[1])
    shutil.rmtree(WORK, ignore_errors=True)
    os.environ["llmreg_home"] = str(HOME)  # noqa: SIM112
    write_language_model()
    write_gguf()
    write_raw_dataset()
    run("plan_and_preprocess", "-d", 901, "-c", "full", "-np", 1, "--spacing", 3, 3, 5, "--memory-gb", 4, "--llm", LLM,
        "--layers", 0, 1)  # fmt: skip
    shorten_splits()
    train_models()
    write_zips()
    write_predictions()
    write_comparison()
    write_points()
    run("find_best_configuration", NAME)
    keep(target)


def write_language_model() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=20, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(LLM)


def write_gguf() -> None:
    """Write a language model with one layer, quantised as the built-in one is."""
    kind, generator = gguf.GGMLQuantizationType.Q8_0, np.random.RandomState(0)
    writer = gguf.GGUFWriter(GGUF, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_key_length(16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    shapes = {
        "token_embd": (20, 32), "blk.0.attn_q": (32, 32), "blk.0.attn_k": (16, 32), "blk.0.attn_v": (16, 32),
        "blk.0.attn_output": (32, 32), "blk.0.ffn_gate": (32, 32), "blk.0.ffn_up": (32, 32), "blk.0.ffn_down": (32, 32),
        "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,),
    }  # fmt: skip
    for name, shape in shapes.items():
        values = (0.3 * generator.standard_normal(shape) + (len(shape) == 1)).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", values)
        else:
            writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# (name, centre, radii in mm; MR in arbitrary units, CT in HU); later ones lie on top.
ORGANS = (
    ("body", (0, 0, 0), (34, 30, 60), 300, 20),
    ("spine", (0, 20, 0), (7, 7, 60), 80, 400),
    ("liver", (-13, -4, 6), (15, 14, 16), 600, 110),
    ("kidney", (14, 6, -6), (10, 11, 14), 900, 180),
)
LABELS = {3: 1, 4: 2}
# The case in which nobody drew the second label.
PARTLY_ANNOTATED = "Stored_0003_0001"
# Places in the body, mm, that are marked in all images.
LANDMARKS = ((-13.0, -4.0, 6.0), (14.0, 6.0, -6.0), (0.0, 20.0, 10.0))


def rotation(degrees: float) -> np.ndarray:
    """A rotation about the third axis."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def write_raw_dataset() -> None:
    """Write four made-up people, each in an MR-like and a CT-like image; the fourth is held out."""
    training: dict[str, list[dict[str, object]]] = {"0": [], "1": []}
    for subject in range(1, 5):
        generator = np.random.RandomState(subject)
        shift, scale = generator.uniform(-3, 3, 3), generator.uniform(0.9, 1.1, 3)
        for modality in (0, 1):
            name, part = f"Stored_{subject:04d}_{modality:04d}", "Tr" if subject < 4 else "Ts"
            write_case(name, part, subject, modality, shift, scale, generator.uniform(-4, 4, 3))
            case: dict[str, object] = {
                "image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz",
                "keypoints": f"./keypointsTr/{name}.csv",
            }  # fmt: skip
            if name == PARTLY_ANNOTATED:
                case["annotated_labels"] = [1]
            if part == "Tr":
                training[str(modality)].append(case)
    description = {
        "name": "Stored",
        "modality": {"0": "MR", "1": "CT"},
        "registration_direction": {"fixed": 0, "moving": 1},
        "pairings": "inter_subject",
        "labels": {"background": 0, "liver": 1, "kidney": 2},
        "training": training,
    }
    (RAW / "dataset.json").write_text(json.dumps(description, indent=2) + "\n")
    columns = ["pair_id"] + [f"{role}{suffix}" for suffix in ("", "_label", "_points") for role in ("fixed", "moving")]
    rows = [
        ["same", *pair_files("Stored_0004_0000", "Ts", "Stored_0004_0001", "Ts")],
        ["other", *pair_files("Stored_0004_0000", "Ts", "Stored_0001_0001", "Tr")],
    ]
    for name, chosen in (("pairs.csv", rows), ("one_pair.csv", rows[:1])):
        with (RAW / "imagesTs" / name).open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *chosen])


def pair_files(fixed: str, fixed_part: str, moving: str, moving_part: str) -> list[str]:
    """List the files of a pair, as seen from imagesTs."""
    return [
        f"../{kind}{part}/{case}{suffix}"
        for kind, suffix in (("images", ".nii.gz"), ("labels", ".nii.gz"), ("keypoints", ".csv"))
        for case, part in ((fixed, fixed_part), (moving, moving_part))
    ]


def write_case(name: str, part: str, subject: int, modality: int, shift, scale, place) -> None:
    size, spacing = ((14, 16, 10), (6.0, 5.0, 8.0)) if modality == 0 else ((16, 14, 12), (5.5, 5.5, 6.0))
    direction = np.diag([-1.0, -1.0, 1.0]) if modality == 1 else np.eye(3)
    if subject in (2, 4) and modality == 0:
        # Oblique, and the second axis flipped.
        direction = rotation(12.0) @ np.diag([1.0, -1.0, 1.0])
    image = sitk.Image(size, sitk.sitkInt16)
    image.SetSpacing(spacing)
    image.SetDirection(direction.ravel().tolist())
    middle = direction @ ((np.array(size) - 1) / 2 * np.array(spacing))
    image.SetOrigin((np.round(place, 2) - middle).tolist())
    index = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"), axis=-1)
    points = np.array(image.GetOrigin()) + (index * np.array(spacing)) @ direction.T
    body = (points - shift) / scale
    values = np.full(size, 0 if modality == 0 else -1000)
    labels = np.zeros(size, np.uint8)
    for number, (_, centre, radii, mr, ct) in enumerate(ORGANS, start=1):
        inside = (((body - centre) / radii) ** 2).sum(axis=-1) < 1
        values[inside] = (ct, mr)[modality == 0]
        labels[inside] = LABELS.get(number, 0)
    if name == PARTLY_ANNOTATED:
        labels[labels == 2] = 0
    for kind, array in (("images", values.astype(np.int16)), ("labels", labels)):
        volume = sitk.GetImageFromArray(array.transpose(2, 1, 0))
        volume.CopyInformation(image)
        path = RAW / f"{kind}{part}" / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(volume, str(path), True)
    voxels = [image.TransformPhysicalPointToContinuousIndex((np.array(p) * scale + shift).tolist()) for p in LANDMARKS]
    table = RAW / f"keypoints{part}" / f"{name}.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text("".join(",".join(f"{value:.4f}" for value in voxel) + "\n" for voxel in voxels))


def shorten_splits() -> None:
    """Leave two validation pairs in each fold, as somebody may edit the file."""
    file = HOME / "preprocessed" / NAME / "splits.json"
    folds = json.loads(file.read_text())
    for fold in folds:
        fold["validation_pairs"] = fold["validation_pairs"][:2]
    file.write_text(json.dumps(folds, indent=2) + "\n")


def train_models() -> None:
    run_training("small", "default", 0, "full", SMALL, validate=True)
    run_training("small", "small", 1, "full", (), validate=True, seed=1)
    for name, (configuration, changes, network) in MODELS.items():
        validate = name in ("velocity", "none")
        run_training(name, "small", 0, configuration, changes, network=network, validate=validate)
    run_training("calibrate", "small", 0, "full", ("network.llm.calibrate=true",))
    write_interrupted_training()
    for fold in RESULTS.glob("*/fold_*"):
        if fold.parent.name.split("__")[1] not in ("small", "interrupted") or fold.name != "fold_0":
            for path in (*fold.glob("checkpoint_latest.*"), *fold.glob("checkpoint_best.*"), fold / "debug.json"):
                path.unlink(missing_ok=True)


def run_training(
    name: str, plans: str, fold: int, configuration: str, changes: Sequence[str], network: str | None = None,
    validate: bool = False, seed: int = 0,
) -> None:  # fmt: skip
    """Train two epochs, replace the learned weights by our own, and end the training anew.

    A training that has done its epochs and is continued writes its final checkpoint again and validates, so that both
    are of the new weights.
    """
    arguments = [901, f"fold{fold}", "-p", plans, "-c", configuration, "--workers", 0, "--device", "cpu"]
    arguments += ["--set", *changes, "--as", name] if changes else []
    arguments += ["--network", network] if network else []
    if name == "templates":
        # The first time, the changed plans are written and their volumes are missing.
        run("train", *arguments, code=2)
        run("preprocess", "-d", 901, "-p", name, "-np", 1)
    run("train", *arguments, "--no_validation")
    (folder,) = RESULTS.glob(f"*__{name}__{configuration}/fold_{fold}")
    for which in ("latest", "best"):
        rewrite(folder / f"checkpoint_{which}.safetensors", HEADS.get(name, DEFAULT_HEAD), seed)
    run("train", *arguments, "--continue", *([] if validate else ["--no_validation"]))


def rewrite(checkpoint: Path, head: float, seed: int) -> None:
    """Give a checkpoint weights of our own: they move images by some voxels, and can be packed into a few kilobytes.

    Each matrix and each kernel repeats 31 numbers, with the standard deviation it had before. The moments of the
    optimiser become such that further steps hardly change the weights: a training that loses them does.
    """
    with safe_open(checkpoint, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    for number, (name, tensor) in enumerate(sorted(tensors.items())):
        if not tensor.is_floating_point():
            continue
        if name.startswith("optimizer."):
            moments = {"exp_avg": torch.full_like(tensor, 1e-3), "exp_avg_sq": torch.full_like(tensor, 1e6)}
            tensors[name] = moments.get(name.split(".")[1], tensor)
        elif tensor.ndim >= 2 and "log" not in name:
            std = float(tensor.std())
            if re.search(r"\.heads?\.", name):
                std = head
            elif "lora_B" in name:
                std = 0.6
            elif name.startswith("network.adapters."):
                # With larger weights, the field depends on what comes out of the language model.
                std *= 3
            tensors[name] = repeat_numbers(tensor.shape, std, 1000 * seed + number)
        else:
            tensors[name] = tensor.bfloat16().to(tensor.dtype)
    save_file(tensors, checkpoint, metadata)


def repeat_numbers(shape: Sequence[int], std: float, seed: int) -> Tensor:
    numbers = np.round(np.random.RandomState(seed).standard_normal(31), 2) * std
    return torch.from_numpy(np.resize(numbers.astype(np.float32), tuple(shape)))


def write_interrupted_training() -> None:
    """Run a training that is told to stop in the middle of its second epoch."""
    from llmreg.training.learner import Learner

    steps: list[int] = []
    original = Learner.step

    def step(*arguments):
        steps.append(len(steps))
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    with mock.patch.object(Learner, "step", step):
        run(
            "train", 901, 0, "-p", "small", "-c", "full", "--network", "dual_pyramid", "--set", "network.width=1",
            "training.learning_rate=0.001", "--as", "interrupted", "--workers", 0, "--device", "cpu", code=143,
        )  # fmt: skip
    # The step before gets a loss of 1000, which the epoch's mean must show.
    checkpoint = model("interrupted") / "fold_0" / "checkpoint_latest.safetensors"
    with safe_open(checkpoint, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state = json.loads(file.metadata()["state"])
    state["sums"]["loss"] = [1000.0, 1]
    save_file(tensors, checkpoint, {"state": json.dumps(state)})
    checkpoint.with_suffix(".json").write_text(json.dumps(state, indent=2) + "\n")


def model(name: str) -> Path:
    (folder,) = RESULTS.glob(f"*__{name}__*")
    return folder


def write_zips() -> None:
    run("export_model", "-m", model("small"), "-o", WORK / "zips" / "small.zip")
    run("export_model", "-m", model("calibrate"), "-o", WORK / "zips" / "calibrate.zip")
    run("export_model", "-m", model("templates"), "-o", WORK / "zips" / "templates.zip")


@contextmanager
def lora(merged: bool) -> Iterator[None]:
    """Decide whether LoRA is merged into the frozen weights.

    Version 0.1.0 tries it for the first pair that a single fold predicts, and keeps it where the field changes by less
    than ``MERGED_CHANGE`` voxels.
    """
    limit = float("inf") if merged else 0.0
    with mock.patch("llmreg.inference.ensembling.MERGED_CHANGE", limit):
        yield


def predict(place: str, of_model: str, *more: object, folds: Sequence[int] = (0,), pairs: str = "one_pair.csv") -> None:
    more = more if "--save" in more else ("--save", "field", *more)
    run(
        "predict", "-i", RAW / "imagesTs" / pairs, "-o", WORK / "predictions" / place, "-m", model(of_model),
        "-f", *folds, "--device", "cpu", *more,
    )  # fmt: skip


def write_predictions() -> None:
    with lora(merged=False):
        for name in ("small", *MODELS):
            predict(f"unmerged/{name}", name)
        predict("refined", "small", "--refine", 5)
        predict("diffeomorphic", "small", "--diffeomorphic")
    for name in ("small", "lora_of_all", "velocity"):
        with lora(merged=True):
            predict(f"merged/{name}", name)
    # All outputs but the transform, whose file has hundreds of kilobytes.
    outputs = ("field", "inverse", "warped", "labels", "seen", "jacobian", "uncertainty", "prealignment")
    # Folds that are averaged are never merged.
    predict("ensemble", "small", "--save", *outputs, "--uncertainty", folds=(0, 1))
    for name in ("learn2reg", "nifti-ras", "npz"):
        predict(f"formats/{name}", "dual_pyramid", "--format", name)
    save_options = ("--save", "field", "prealignment", "warped")
    predict("whole", "dual_pyramid", *save_options, pairs="pairs.csv")
    predict("interrupted", "dual_pyramid", *save_options, "--num_parts", 2, "--part_id", 0, pairs="pairs.csv")
    run("evaluate", "-i", WORK / "predictions" / "whole", "--convention", "voxel", "--num_processes", 1)
    run("report", WORK / "predictions" / "whole", "--num_processes", 1, "-o", WORK / "page.html")


def write_comparison() -> None:
    """Compare LLM-Morph with a stand-in for ANTs that moves everything by 6 mm, and with a program that is missing."""
    from llmreg.benchmark import learned, peers

    def in_this_process(arguments: Sequence[str]) -> None:
        command, *words = arguments
        run(command, *words)

    code = (
        "import sys, numpy, SimpleITK as sitk\n"
        "fixed = sitk.ReadImage(sys.argv[1])\n"
        "field = sitk.GetImageFromArray(numpy.full((*fixed.GetSize()[::-1], 3), 6, numpy.float32), isVector=True)\n"
        "field.CopyInformation(fixed)\n"
        "sitk.WriteImage(field, sys.argv[3])\n"
    )
    with (
        mock.patch.object(learned, "_run", in_this_process),
        mock.patch.object(peers, "missing", lambda method: None if method == "ants" else f"{method} is not installed."),
        mock.patch.object(peers, "_command", lambda method, paths: [sys.executable, "-c", code, *map(str, paths)]),
        lora(merged=False),
    ):
        run("benchmark", "-d", 901, "-p", "small", "-c", "full", "--device", "cpu", "--methods", "initial", "ants",
            "greedy", "llm_morph")  # fmt: skip
    for path in (RESULTS / "benchmark").glob("*.png"):
        path.unlink()


def write_points() -> None:
    """Write landmarks in three formats, and move them through a field."""
    field = WORK / "predictions" / "unmerged" / "small" / "disp_Stored_0004_0000_Stored_0004_0001.nii.gz"
    points = WORK / "points"
    points.mkdir()
    (points / "fixed.csv").write_text("x,y,z,name\n1.5,2.0,3.0,first\n-8.0,4.0,-6.0,second\n")
    (points / "fixed.fcsv").write_text(
        "# Markups fiducial file version = 4.11\n# CoordinateSystem = LPS\n"
        "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
        "1,1.5,2.0,3.0,0,0,0,1,1,1,0,first,,\n2,-8.0,4.0,-6.0,0,0,0,1,1,1,0,second,,\n"
    )
    controls = [{"id": "1", "label": "first", "position": [1.5, 2.0, 3.0]}]
    markups = {"markups": [{"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": controls}]}
    (points / "fixed.mrk.json").write_text(json.dumps(markups, indent=2) + "\n")
    for suffix in (".csv", ".fcsv", ".mrk.json"):
        run("apply", "-t", field, "--points", points / f"fixed{suffix}", "-o", points / f"moving{suffix}")


def keep(target: Path) -> None:
    """Pack each folder into an archive, without a trace of who made it and when."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for folder in sorted(path for path in WORK.iterdir() if path.is_dir()):
        with tarfile.open(target / f"{folder.name}.tar.xz", "w:xz", preset=9) as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and path.name not in LEFT_OUT:
                    info = tarfile.TarInfo(str(path.relative_to(WORK)))
                    info.size = path.stat().st_size
                    with path.open("rb") as file:
                        archive.addfile(info, file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
