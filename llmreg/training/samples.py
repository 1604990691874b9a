"""Training samples: which pair a step sees, and its arrays."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset

from llmreg.data.dataset import Pair
from llmreg.errors import UserError
from llmreg.plans.plans import AugmentationSettings, Configuration, Training
from llmreg.preprocessing.padding import pad
from llmreg.preprocessing.preprocess import read_case_record, read_volume
from llmreg.training.augmentation import PairArrays, augment_pair
from llmreg.training.distributed import DistributedContext
from llmreg.workers import single_threaded

log = logging.getLogger(__name__)


def load_pair(folder: Path, pair: Pair, configuration: Configuration) -> PairArrays:
    """A pair's preprocessed arrays, padded for the network; the padding is seen by neither."""

    def padded(name: str) -> np.ndarray:
        return pad(read_volume(folder / f"{name}.b2nd"), configuration)[0]

    def labels(case: str) -> np.ndarray | None:
        return padded(f"{case}_seg") if read_case_record(folder, case)["annotated_labels"] else None

    return PairArrays(
        fixed=padded(pair.fixed),
        moving=padded(pair.moving),
        fixed_labels=labels(pair.fixed),
        moving_labels=labels(pair.moving),
        fixed_seen=padded(f"{pair.fixed}_seen"),
        moving_seen=padded(f"{pair.moving}_seen"),
    )


def common_labels(folder: Path, pairs: Sequence[Pair]) -> dict[Pair, list[int]]:
    """The ids annotated in both cases of a pair; one that is unlisted in either is unknown there, not background."""
    cases = {name for pair in pairs for name in (pair.fixed, pair.moving)}
    known = {case: set(read_case_record(folder, case)["annotated_labels"]) for case in cases}
    return {pair: sorted(known[pair.fixed] & known[pair.moving]) for pair in pairs}


def as_tensors(sample: PairArrays, labels: Sequence[int]) -> dict[str, Tensor]:
    """Images (1, z, y, x) float32, label maps and what is seen (z, y, x), the ids to count.

    Pairs of which nothing is annotated get empty label maps and no ids.
    """
    empty = np.zeros(sample.fixed.shape, np.uint8)

    def tensor(array: np.ndarray | None) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(empty if array is None else array))

    return {
        "fixed": tensor(sample.fixed)[None],
        "moving": tensor(sample.moving)[None],
        "fixed_labels": tensor(sample.fixed_labels),
        "moving_labels": tensor(sample.moving_labels),
        "fixed_seen": tensor(sample.fixed_seen),
        "moving_seen": tensor(sample.moving_seen),
        "labels": torch.tensor(labels, dtype=torch.long),
    }


@dataclass(frozen=True)
class Sampling:
    """Which pairs are drawn, and what happens to them.

    Attributes:
        unlabelled: whether pairs without a structure annotated in both are drawn too.
        bidirectional: whether a pair is turned about with probability 0.5.
        augmentation: the random changes.
    """

    augmentation: AugmentationSettings
    unlabelled: bool = False
    bidirectional: bool = False


class TrainingPairs(TorchDataset[dict[str, Tensor]]):
    """Sample k is drawn and augmented with randomness that depends on the seed and k alone.

    So a continued training sees what an uninterrupted one would have seen, whatever the number of workers.
    """

    def __init__(
        self,
        folder: Path,
        pairs: Sequence[Pair],
        configuration: Configuration,
        sampling: Sampling,
        seed: Sequence[int],
    ) -> None:
        self._folder = folder
        self._labels = common_labels(folder, pairs)
        self._pairs = [pair for pair in pairs if self._labels[pair] or sampling.unlabelled]
        self._configuration = configuration
        self._sampling = sampling
        self._seed = list(seed)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        pair, labels, rng = self._drawn(index)
        sample = augment_pair(load_pair(self._folder, pair, self._configuration), self._sampling.augmentation, rng)
        return as_tensors(sample, labels) | {"sample": torch.tensor(index)}

    def pair(self, index: int) -> Pair:
        """The pair of a sample, as it is turned there."""
        return self._drawn(index)[0]

    def _drawn(self, index: int) -> tuple[Pair, list[int], np.random.Generator]:
        rng = np.random.default_rng([*self._seed, index])
        pair = self._pairs[int(rng.integers(len(self._pairs)))]
        labels = self._labels[pair]
        if self._sampling.bidirectional and rng.random() < 0.5:
            pair = Pair(pair.moving, pair.fixed)
        return pair, labels, rng


def numbered(steps: range, training: Training, ranks: DistributedContext) -> list[list[int]]:
    """The numbers of the samples in each batch of the steps, on this process.

    Each number is drawn once, whatever the number of processes: two of them see in one step what a single one sees with
    twice the accumulation.
    """
    size, together = training.batch_size, training.accumulate * ranks.world
    first = [
        (step * together + part * ranks.world + ranks.rank) * size
        for step in steps
        for part in range(training.accumulate)
    ]
    return [list(range(start, start + size)) for start in first]


def batches(
    pairs: TrainingPairs, samples: Sequence[list[int]], workers: int, pin_memory: bool = False
) -> Generator[dict[str, Tensor], None, None]:
    """The numbered samples of ``pairs`` in order, as batches; the same ones whatever the number of workers.

    When a worker is ended from outside, this process loads the rest itself, and the log says so.

    Args:
        pairs: where the samples come from.
        samples: their numbers, a list for each batch, which are stacked along a new first axis.
        workers: processes that load and augment ahead, at most four batches each; 0 does it in this process.
        pin_memory: whether to hand out page-locked memory, for a faster copy to a GPU.

    Raises:
        UserError: as raised in a worker.
    """
    done = 0
    if workers:
        loader = DataLoader(
            pairs,
            batch_sampler=samples,
            num_workers=workers,
            prefetch_factor=4,
            # Spawned: a forked child waits for ever on the threads with which blosc2 has read volumes in this process.
            multiprocessing_context="spawn",
            worker_init_fn=_start_worker,
            pin_memory=pin_memory,
            collate_fn=_collate,
        )
        try:
            for batch in _without_alarm(loader):
                yield batch
                done += 1
            return
        except UserError as error:
            # A worker's error comes back as its whole traceback; the sentence is its last line.
            raise UserError(str(error).strip().splitlines()[-1].split("UserError: ")[-1]) from None
        except RuntimeError as error:
            if "DataLoader worker" not in str(error) or "exited unexpectedly" not in str(error):
                raise
            log.warning(
                "A process that loads pairs was ended from outside, perhaps for want of memory (%s): this one loads "
                "the rest itself. Start with fewer --workers if it happens again.",
                str(error).splitlines()[0],
            )
    for numbers in samples[done:]:
        yield _collate([pairs[number] for number in numbers])


def _without_alarm(loader: DataLoader[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """The batches of a loader whose workers leave the signals of a terminal to this process.

    Ctrl-C reaches every process of a terminal: this one finishes its step and ends the others. And a worker's end is
    found out where a batch is waited for; PyTorch's handler of SIGCHLD would raise it wherever the training happens to
    be.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    # Windows has no SIGCHLD.
    of_interest = [getattr(signal, name) for name in ("SIGINT", "SIGCHLD") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in of_interest}
    # Ignored before the workers start, since they inherit it from their first instruction on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return iter(loader)
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _start_worker(number: int) -> None:
    single_threaded()


def _collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    # Pairs of a batch may be annotated differently: what all of them know is counted.
    common = torch.tensor(
        sorted(set.intersection(*(set(sample["labels"].tolist()) for sample in samples))), dtype=torch.long
    )
    stacked: dict[str, Tensor] = default_collate([sample | {"labels": common} for sample in samples])
    return stacked | {"labels": common}
