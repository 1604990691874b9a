"""A tiny model that can be shared, and zips of it that were tampered with."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_plans import make_plans
from torch import nn

from llmreg.engine.templates import Template, write_templates
from llmreg.geometry.grid import Grid, array_to_image
from llmreg.images.image_files import write_image
from llmreg.plans.plans import Plans, write_plans
from llmreg.training import checkpoints

NAME = "Dataset001_Tiny/llm_morph__default__full"


SHA256 = "0123456789abcdef" * 4


WEIGHTS, STATE = "fold_0/checkpoint_final.safetensors", "fold_0/checkpoint_final.json"


Members = dict[str, bytes]


def plans() -> Plans:
    return make_plans(
        (16, 14, 12),
        prealignment={"method": "template", "reference_case": "Tiny_0001_0000"},
        network={"llm": {"source": "/elsewhere/language model", "layers": (1, 2), "sha256": SHA256}},
    )


def templates(seed: int) -> dict[int, Template]:
    grid, rng = Grid.from_centre((5, 6, 7), (8.0, 8.0, 8.0), (0.0, 0.0, 0.0)), np.random.default_rng(seed)
    mean = rng.random(grid.shape, dtype=np.float32)
    return {m: Template(array_to_image(mean, grid), mean > 0.5, np.full(3, m), np.ones(3)) for m in (0, 1)}


def write_model(folder: Path) -> None:
    """Write a model folder as training leaves it, with two folds."""
    model_plans = plans()
    write_plans(folder / "plans.json", model_plans)
    (folder / "dataset_fingerprint.json").write_text(json.dumps({"cases": [{"case": "Tiny_0001_0000"}]}))
    voxels = np.random.default_rng(0).random(model_plans.frame.shape, dtype=np.float32)
    write_image(array_to_image(voxels, model_plans.frame), folder / "reference.nii.gz")
    for seed, name in enumerate(("all", "fold_0", "fold_1")):
        write_templates(folder / "templates" / name, templates(seed))
    for fold in ("0", "1"):
        torch.manual_seed(int(fold))
        network = nn.Conv3d(4, 8, 3)
        optimizer = torch.optim.Adam(network.parameters())
        network(torch.rand(1, 4, 3, 3, 3)).sum().backward()
        optimizer.step()
        state = checkpoints.TrainingState(
            plans_digest=model_plans.digest("full"),
            llm_sha256=SHA256,
            configuration="full",
            fold=fold,
            epochs=3,
            epoch=3,
        )
        fold_folder = folder / f"fold_{fold}"
        checkpoints.save_checkpoint(fold_folder, "latest", state, network, optimizer)
        checkpoints.save_checkpoint(fold_folder, "final", state, network)
        for stray in ("training_log.jsonl", "progress.png", "validation/summary.json"):
            (fold_folder / stray).parent.mkdir(exist_ok=True)
            (fold_folder / stray).write_text("{}")


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with the content of files."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def members_of(content: bytes) -> Members:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def update_manifest(members: Members) -> Members:
    """Make the manifest agree with the members, as whoever is hostile would."""
    manifest = json.loads(members["manifest.json"])
    manifest["files"] = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in members.items()
        if name != "manifest.json"
    }
    return members | {"manifest.json": json.dumps(manifest).encode()}


def change_manifest(members: Members, **changes: Any) -> Members:
    return members | {"manifest.json": json.dumps(json.loads(members["manifest.json"]) | changes).encode()}


def zip_members(members: Members, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return buffer.getvalue()
