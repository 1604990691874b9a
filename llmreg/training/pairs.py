"""Training samples: which pair a step sees, and its arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset

from llmreg.dataset import Pair
from llmreg.errors import UserError
from llmreg.preprocessing.padding import pad
from llmreg.preprocessing.plans import AugmentationSettings, Configuration
from llmreg.preprocessing.preprocess import read_case_record, read_volume
from llmreg.training.augmentation import PairArrays, augment_pair
from llmreg.workers import single_threaded


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


def common_labels(folder: Path, pairs: Sequence[Pair], labels: Sequence[int]) -> dict[Pair, list[int]]:
    """The ids annotated in both cases of a pair; one that is unlisted in either is unknown there, not background."""
    known = {}
    for case in {name for pair in pairs for name in (pair.fixed, pair.moving)}:
        annotated = read_case_record(folder, case)["annotated_labels"]
        known[case] = set(labels if annotated is None else annotated).intersection(labels)
    return {pair: sorted(known[pair.fixed] & known[pair.moving]) for pair in pairs}


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
        self._labels = common_labels(folder, pairs, labels)
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


def batches(
    pairs: TrainingPairs, samples: range, batch_size: int, workers: int, pin_memory: bool = False
) -> Iterator[dict[str, Tensor]]:
    """The numbered samples of ``pairs`` in order, as batches; the same ones whatever the number of workers.

    Args:
        pairs: where the samples come from.
        samples: their numbers.
        batch_size: how many are stacked along a new first axis.
        workers: processes that load and augment ahead; 0 does it in this process.
        pin_memory: whether to hand out page-locked memory, for a faster copy to a GPU.

    Raises:
        UserError: as raised in a worker.
    """
    loader = DataLoader(
        pairs,
        batch_size=batch_size,
        sampler=samples,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        # Spawned: a forked child waits for ever on the threads with which blosc2 has read volumes in this process.
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_start_worker,
        pin_memory=pin_memory,
        collate_fn=_collate,
    )
    try:
        yield from loader
    except UserError as error:
        # A worker's error comes back as its whole traceback; the sentence is its last line.
        raise UserError(str(error).strip().splitlines()[-1].split("UserError: ")[-1]) from None


def _start_worker(number: int) -> None:
    single_threaded()


def _collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    # Pairs of a batch may be annotated differently: what all of them know is counted.
    common = torch.tensor(
        sorted(set.intersection(*(set(sample["labels"].tolist()) for sample in samples))), dtype=torch.long
    )
    stacked: dict[str, Tensor] = default_collate([sample | {"labels": common} for sample in samples])
    return stacked | {"labels": common}
