"""What a training is given besides its plans."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmreg.data.dataset import Pair


@dataclass(frozen=True)
class TrainingOptions:
    """How a fold is trained, where the plans do not say it; none of it changes what the plans' digest covers.

    Attributes:
        epochs: number of epochs instead of the plans'.
        minutes: train as many epochs as fit into this time instead of a number; measured when the training starts.
        resume: continue from the latest checkpoint in the fold's folder, where there is one.
        workers: number of processes that load and augment pairs; with 0 the training does it itself.
        compile: whether to compile the network.
        loggers: names of optional loggers, see :data:`llmreg.training.loggers.OPTIONAL_LOGGERS`.
        pretrained: checkpoint from which a training that starts takes the weights that fit.
        checkpoint_seconds: a checkpoint is also written within an epoch when the latest is older than this.
    """

    epochs: int | None = None
    minutes: float | None = None
    resume: bool = False
    workers: int = 1
    compile: bool = False
    loggers: tuple[str, ...] = ()
    pretrained: Path | None = None
    checkpoint_seconds: float = 300.0


@dataclass(frozen=True)
class FoldData:
    """What a fold is trained on, and where its results go.

    Attributes:
        name: ``0`` ... or ``all``.
        training_pairs: pairs that are drawn from at random.
        validation_pairs: pairs that are evaluated after each epoch, in this order.
        volumes: folder of the preprocessed volumes.
        folder: folder for checkpoints and logs.
    """

    name: str
    training_pairs: Sequence[Pair]
    validation_pairs: Sequence[Pair]
    volumes: Path
    folder: Path
