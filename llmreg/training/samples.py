"""Training samples: which pair a step sees, and its arrays."""

import logging
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset

from llmreg.data.dataset import Pair
from llmreg.errors import UserError
from llmreg.networks.registration_network import pad_to_shape
from llmreg.plans.plan_settings import AugmentationSettings, Configuration, Training
from llmreg.preprocessing.preprocessed_volumes import read_case_record, read_volume
from llmreg.training.augmentation import CaseArrays, augment_pair
from llmreg.training.distributed import DistributedContext
from llmreg.training.options import FoldData
from llmreg.training.training_errors import NothingToTrainOn
from llmreg.workers import use_single_thread

log = logging.getLogger(__name__)


def load_case(folder: Path, case: str, configuration: Configuration) -> CaseArrays:
    """Read a case's preprocessed arrays, padded for the network; the padding lies outside the field of view."""

    def read_padded(suffix: str) -> np.ndarray:
        return pad_to_shape(read_volume(folder / f"{case}{suffix}.b2nd"), configuration.padded_size[::-1])[0]

    seen = read_padded("_seen")
    return CaseArrays(
        image=read_padded(""),
        labels=read_padded("_seg") if read_case_record(folder, case)["annotated_labels"] else np.zeros_like(seen),
        seen=seen,
    )


def common_labels(folder: Path, pairs: Sequence[Pair]) -> dict[Pair, list[int]]:
    """The ids that are annotated in both cases of each pair.

    An id that a case does not list is unknown there, and not background.
    """
    cases = {name for pair in pairs for name in (pair.fixed, pair.moving)}
    annotated = {case: set(read_case_record(folder, case)["annotated_labels"]) for case in cases}
    return {pair: sorted(annotated[pair.fixed] & annotated[pair.moving]) for pair in pairs}


def to_tensors(fixed: CaseArrays, moving: CaseArrays, labels: Sequence[int]) -> dict[str, Tensor]:
    """Return a pair as a sample: images (1, z, y, x) float32, label maps and masks (z, y, x), and ids that count."""
    arrays = {
        "fixed": fixed.image[None],
        "moving": moving.image[None],
        "fixed_labels": fixed.labels,
        "moving_labels": moving.labels,
        "fixed_seen": fixed.seen,
        "moving_seen": moving.seen,
    }
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    return tensors | {"labels": torch.tensor(labels, dtype=torch.long)}


class TrainingPairs(TorchDataset[dict[str, Tensor]]):
    """Random samples of training pairs: sample k depends on the plans' seed, the fold's name and k alone.

    A resumed training therefore sees what an uninterrupted one would have seen, whatever the number of workers.

    Args:
        fold: its training pairs and volumes.
        configuration: the shape that volumes are padded to.
        training: the seed, and whether the roles of a pair are exchanged with probability 0.5.
        augmentation: how pairs are augmented.
        use_unlabelled: whether the loss can use pairs without a structure that is annotated in both images.

    Raises:
        NothingToTrainOn: there is no pair that the loss can use.
    """

    def __init__(
        self,
        fold: FoldData,
        configuration: Configuration,
        training: Training,
        augmentation: AugmentationSettings,
        *,
        use_unlabelled: bool,
    ) -> None:
        self._labels = common_labels(fold.volumes, fold.training_pairs)
        self._pairs = [pair for pair in fold.training_pairs if self._labels[pair] or use_unlabelled]
        if not self._pairs:
            raise NothingToTrainOn(fold.name, "has no training pair with a structure annotated in both images")
        self._folder, self._configuration, self._augmentation = fold.volumes, configuration, augmentation
        self._bidirectional = training.bidirectional
        self._seed = [training.seed, sum(map(ord, fold.name))]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        pair, labels, rng = self._draw(index)
        fixed, moving = augment_pair(
            load_case(self._folder, pair.fixed, self._configuration),
            load_case(self._folder, pair.moving, self._configuration),
            self._augmentation,
            rng,
        )
        return to_tensors(fixed, moving, labels) | {"sample": torch.tensor(index)}

    def pair(self, index: int) -> Pair:
        """The pair of a sample, in the direction that was drawn for it."""
        return self._draw(index)[0]

    def _draw(self, index: int) -> tuple[Pair, list[int], np.random.Generator]:
        rng = np.random.default_rng([*self._seed, index])
        pair = self._pairs[int(rng.integers(len(self._pairs)))]
        labels = self._labels[pair]
        if self._bidirectional and rng.random() < 0.5:
            pair = Pair(pair.moving, pair.fixed)
        return pair, labels, rng


def number_samples(steps: range, training: Training, context: DistributedContext) -> list[list[int]]:
    """Return the numbers of the samples in each batch of consecutive steps, on this process.

    Each number is drawn once, whatever the number of processes: two of them see in one step what a single one sees with
    twice the accumulation.
    """
    batches = range(steps.start * training.accumulate, steps.stop * training.accumulate)
    starts = [(batch * context.world + context.rank) * training.batch_size for batch in batches]
    return [list(range(start, start + training.batch_size)) for start in starts]


def load_batches(
    pairs: TrainingPairs, samples: Sequence[list[int]], workers: int, *, pin_memory: bool = False
) -> Generator[dict[str, Tensor], None, None]:
    """Yield the numbered samples of ``pairs`` in order, as batches; the same ones whatever the number of workers.

    When a worker is killed from outside, this process loads the rest itself and logs a warning.

    Args:
        pairs: where the samples come from.
        samples: their numbers, a list for each batch, which are stacked along a new first axis.
        workers: processes that load and augment ahead, at most four batches each; 0 does it in this process.
        pin_memory: whether to hand out page-locked memory, for a faster copy to a GPU.

    Raises:
        UserError: as raised in a worker.
    """
    loaded = 0
    if workers:
        loader = DataLoader(
            _Batches(pairs),
            batch_size=None,
            sampler=samples,
            num_workers=workers,
            prefetch_factor=4,
            # A forked child would wait for ever on the threads with which blosc2 has read volumes in this process.
            multiprocessing_context="spawn",
            worker_init_fn=_limit_threads,
            pin_memory=pin_memory,
        )
        try:
            for batch in _start_workers(loader):
                if isinstance(batch, UserError):
                    raise batch
                yield batch
                loaded += 1
            return
        # A batch that a killed worker had announced is lost as a broken connection.
        except (RuntimeError, ConnectionError, EOFError) as error:
            if isinstance(error, RuntimeError) and "exited unexpectedly" not in str(error):
                raise
            log.warning(
                "A process that loads pairs was killed from outside, perhaps because memory was short (%s): the "
                "training loads the rest itself. Use fewer workers if it happens again.",
                str(error).partition("\n")[0],
            )
    for numbers in samples[loaded:]:
        yield _collate([pairs[number] for number in numbers])


class _Batches(TorchDataset[dict[str, Tensor] | UserError]):
    """Batches by the numbers of their samples; an error is an item, because a loader would raise its text alone."""

    def __init__(self, pairs: TrainingPairs) -> None:
        self._pairs = pairs

    def __getitem__(self, numbers: list[int]) -> dict[str, Tensor] | UserError:
        try:
            return _collate([self._pairs[number] for number in numbers])
        except UserError as error:
            return error


def _start_workers(
    loader: DataLoader[dict[str, Tensor] | UserError],
) -> Iterator[dict[str, Tensor] | UserError]:
    """Start a loader's workers so that signals reach this process alone, and return its batches.

    Ctrl-C reaches every process of a terminal, but this one has to finish its step before it ends the others. A
    worker's death is noticed where a batch is waited for; PyTorch's handler of SIGCHLD would raise an error at any
    point of the training.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    # Windows has no SIGCHLD.
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, getattr(signal, "SIGCHLD", signal.SIGINT))}
    # It is ignored before the workers start, because they inherit that from their first instruction on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return iter(loader)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _limit_threads(number: int) -> None:
    use_single_thread()


def _collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    # Pairs of a batch may be annotated differently; only the ids that all of them have count.
    common = torch.tensor(
        sorted(set.intersection(*(set(sample["labels"].tolist()) for sample in samples))), dtype=torch.long
    )
    return {**default_collate([sample | {"labels": common} for sample in samples]), "labels": common}
