"""What a training is given besides its plans."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmreg.arguments import PathLike, check_choice, check_count, check_positive
from llmreg.data.dataset import Pair
from llmreg.training.loggers import OPTIONAL_LOGGERS


@dataclass(frozen=True)
class TrainingOptions:
    """How a fold is trained, where the plans do not say it; none of it changes what the plans' digest covers.

    Attributes:
        epochs: number of epochs instead of the plans'.
        minutes: train as many epochs as fit into this time instead of a number; measured when the training starts.
        resume: continue from the latest checkpoint in the fold's folder, where there is one.
        workers: number of processes that load and augment pairs, which need ``if __name__ == "__main__":`` in a script;
            with 0 the training does it itself.
        compile: whether to compile the network.
        loggers: names of optional loggers, see :data:`llmreg.training.loggers.OPTIONAL_LOGGERS`.
        pretrained: checkpoint, trained fold's folder or model folder from which a training that starts takes the
            weights that fit.
        checkpoint_seconds: a checkpoint is also written within an epoch when the latest is older than this.

    Raises:
        BadArgument: a number is below its least.
        UnknownName: there is no such logger.
    """

    epochs: int | None = None
    minutes: float | None = None
    resume: bool = False
    workers: int = 0
    compile: bool = False
    loggers: tuple[str, ...] = ()
    pretrained: PathLike | None = None
    checkpoint_seconds: float = 300.0

    def __post_init__(self) -> None:
        check_count("epochs", self.epochs, 1)
        check_positive("minutes", self.minutes)
        check_count("workers", self.workers)
        for logger in self.loggers:
            check_choice("logger", logger, tuple(OPTIONAL_LOGGERS))


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
