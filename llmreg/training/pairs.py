"""Training samples: which pair a step sees, and its arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from llmreg.dataset import Pair
from llmreg.preprocessing.padding import pad
from llmreg.preprocessing.plans import AugmentationSettings, Configuration
from llmreg.preprocessing.preprocess import read_case_record, read_volume
from llmreg.training.augmentation import PairArrays, augment_pair


def load_pair(folder: Path, pair: Pair, configuration: Configuration) -> PairArrays:
    """A pair's preprocessed arrays, padded for the network."""

    def padded(name: str) -> np.ndarray:
        return pad(read_volume(folder / f"{name}.b2nd"), configuration)[0]

    return PairArrays(
        fixed=padded(pair.fixed),
        moving=padded(pair.moving),
        fixed_labels=padded(f"{pair.fixed}_seg"),
        moving_labels=padded(f"{pair.moving}_seg"),
    )


def common_labels(folder: Path, pair: Pair, labels: Sequence[int]) -> list[int]:
    """The ids annotated in both cases; a structure that is unlisted in one is unknown there, not background."""
    known = set(labels)
    for case in (pair.fixed, pair.moving):
        annotated = read_case_record(folder, case)["annotated_labels"]
        if annotated is not None:
            known &= set(annotated)
    return sorted(known)


def as_tensors(sample: PairArrays, labels: Sequence[int]) -> dict[str, Tensor]:
    """Images (1, z, y, x) float32, label maps (z, y, x) of integers, the ids to count."""
    assert sample.fixed_labels is not None
    assert sample.moving_labels is not None
    return {
        "fixed": torch.from_numpy(np.ascontiguousarray(sample.fixed))[None],
        "moving": torch.from_numpy(np.ascontiguousarray(sample.moving))[None],
        "fixed_labels": torch.from_numpy(np.ascontiguousarray(sample.fixed_labels)),
        "moving_labels": torch.from_numpy(np.ascontiguousarray(sample.moving_labels)),
        "labels": torch.tensor(labels, dtype=torch.long),
    }


class TrainingPairs(TorchDataset[dict[str, Tensor]]):
    """Sample k is drawn and augmented with randomness that depends on the seed and k alone.

    So a continued training sees what an uninterrupted one would have seen, whatever the number of workers.
    """

    def __init__(
        self,
        folder: Path,
        pairs: Sequence[Pair],
        labels: Sequence[int],
        configuration: Configuration,
        augmentation: AugmentationSettings,
        seed: Sequence[int],
    ) -> None:
        self._folder = folder
        self._labels = {pair: common_labels(folder, pair, labels) for pair in pairs}
        self._pairs = [pair for pair in pairs if self._labels[pair]]
        self._configuration = configuration
        self._augmentation = augmentation
        self._seed = list(seed)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([*self._seed, index])
        pair = self._pairs[int(rng.integers(len(self._pairs)))]
        sample = augment_pair(load_pair(self._folder, pair, self._configuration), self._augmentation, rng)
        return as_tensors(sample, self._labels[pair])
