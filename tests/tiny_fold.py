"""A fold of random preprocessed volumes and its plans, on which a network trains a step in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import tiny_plans
import torch
from scipy import ndimage

from llmreg.data.dataset import Pair
from llmreg.plans.plans import Plans
from llmreg.training.distributed import DistributedContext
from llmreg.training.options import FoldData

# Volumes (z, y, x); the padding is along z.
SHAPE = (14, 16, 16)
ALONE = DistributedContext(0, 1, torch.device("cpu"))
TRAINING_PAIRS = (Pair("a", "b"), Pair("c", "b"))
VALIDATION_PAIRS = (Pair("d", "a"),)


def write_volumes(folder: Path, unlabelled: Sequence[str] = (), names: Sequence[str] = "abcd") -> Path:
    """Write cases: two structures that lie differently in each, and a field of view that ends at x = 14."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for shift, name in enumerate(names):
        noise = ndimage.gaussian_filter(rng.random(SHAPE), 2)
        labels = np.zeros(SHAPE, np.uint8)
        labels[3:9, 3 + shift : 9 + shift, 4:10], labels[9:12, 5:11, 3 + shift : 9 + shift] = 1, 2
        image = np.clip(0.3 * labels + noise, 0, 1).astype(np.float32)
        seen_mask = np.ones(SHAPE, np.uint8)
        seen_mask[..., 14:] = 0
        volumes = {"": image, "_seen": seen_mask} | ({} if name in unlabelled else {"_seg": labels})
        for suffix, volume in volumes.items():
            blosc2.asarray(volume, urlpath=str(folder / f"{name}{suffix}.b2nd"), mode="w")
        annotated_labels = [] if name in unlabelled else [1, 2]
        (folder / f"{name}.json").write_text(json.dumps({"annotated_labels": annotated_labels}))
    return folder


def make_plans(training: dict[str, Any] | None = None, **changes: Any) -> Plans:
    """Plans of a small network that is not LLM-Morph, for two epochs of three steps."""
    steps = {"epochs": 2, "steps_per_epoch": 3, "learning_rate": 1e-2, "validation_pairs": 1, "autocast": "none"}
    content = {
        "dataset_name": "Dataset001_X",
        "labels": {1: "liver", 2: "spleen"},
        "network": {"name": "dual_pyramid", "width": 1},
        "training": steps | (training or {}),
    }
    return tiny_plans.make_plans(SHAPE[::-1], **content | changes)


def make_fold(root: Path, unlabelled: Sequence[str] = ()) -> FoldData:
    """The fold below a folder: volumes in ``volumes``, results in ``fold_0``."""
    volumes = root / "volumes"
    if not volumes.exists():
        write_volumes(volumes, unlabelled)
    return FoldData("0", TRAINING_PAIRS, VALIDATION_PAIRS, volumes, root / "fold_0")
