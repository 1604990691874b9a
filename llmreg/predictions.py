"""The record of predictions: ``predict.json``, and a record for each pair, from which it is put together.

Version 1 of the format has no key that names it. Every key that was ever written is read; one that a file leaves out
is None, or empty, and stays left out when the record is written again.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from llmreg.errors import UnreadableFile
from llmreg.files import read_json, write_json
from llmreg.settings import first_problem

PREDICT_FILE = "predict.json"


class _Record(BaseModel):
    # Keys of later versions are passed over. Keys are written in the order of the attributes.
    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())
    # Keys that are written only where they have a value.
    _OPTIONAL: ClassVar[frozenset[str]] = frozenset({"failed", "waited"})

    def to_json(self) -> dict[str, Any]:
        """The record with the keys that were given to it; most of them also where their value is None."""
        return {
            key: value
            for key, value in self.model_dump(exclude_unset=True).items()
            if value or key not in self._OPTIONAL
        }

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file. Raises MissingFile, or UnreadableFile, whose message names the key that is wrong."""
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            problem = f"is not as this package writes it ({first_problem(error)})"
            raise UnreadableFile(path, problem, "run the prediction again") from None


class PlacementRecord(_Record):
    """How a case was brought into the common frame; see :class:`llmreg.engine.prealignment.CaseTransform`."""

    matrix: list[list[float]]
    translation: list[float]
    stage: str
    score: float | None = None
    uncertainty_mm: float | None = None


class PredictedPair(_Record):
    """A pair that was registered.

    Files are named as JSON has them: those that the prediction wrote relative to the folder of ``predict.json``, those
    that it read by absolute paths. :meth:`path` gives the file itself.

    Attributes:
        folder: where ``predict.json`` lies; set by :func:`read_predictions`, and never written.
        pair_id: names the pair here and in its scores.
        fixed: name of the fixed case.
        moving: name of the moving case.
        field: displacement field; None when it was not saved, as with the other outputs.
        inverse: field of the other direction, on the moving image's grid.
        warped: moving image on the fixed image's grid.
        labels: moving label map on the fixed image's grid.
        seen: where the field looks into the moving image.
        jacobian: determinant of the field's Jacobian.
        uncertainty: standard deviation of the displacement over folds, mm.
        transform: the whole mapping as an ITK transform.
        prealignment: its affine part.
        format: of the fields, one of :data:`llmreg.images.formats.FIELD_FORMATS`.
        fixed_path: the fixed image.
        moving_path: the moving image.
        fixed_label: label map of the fixed image; landmarks and masks are named alike.
        initial_transform: what the registration started from.
        fixed_transform: how the fixed case was placed in the frame.
        moving_transform: how the moving case was.
        mean_mm: mean length of the network's displacement.
        largest_mm: its largest length.
        folding_percent: share of the frame where it folds.
        refined: the refinement's objective ``before`` and ``after``.
        uncertainty_mm: mean of the uncertainty.
        seconds: what the registration took.
        peak_memory_gb: most memory in use, GiB, of a method that runs in a process of its own.
    """

    folder: Path | None = Field(default=None, exclude=True)
    pair_id: str
    fixed: str
    moving: str
    field: str | None = None
    inverse: str | None = None
    warped: str | None = None
    labels: str | None = None
    seen: str | None = None
    jacobian: str | None = None
    uncertainty: str | None = None
    transform: str | None = None
    prealignment: str | None = None
    format: str = "itk"
    fixed_path: str | None = None
    moving_path: str | None = None
    fixed_label: str | None = None
    moving_label: str | None = None
    fixed_points: str | None = None
    moving_points: str | None = None
    fixed_mask: str | None = None
    moving_mask: str | None = None
    initial_transform: str | None = None
    fixed_transform: PlacementRecord | None = None
    moving_transform: PlacementRecord | None = None
    mean_mm: float | None = None
    largest_mm: float | None = None
    folding_percent: float | None = None
    refined: dict[str, float] | None = None
    uncertainty_mm: float | None = None
    seconds: float | None = None
    peak_memory_gb: float | None = None

    def path(self, attribute: str) -> Path | None:
        """Where a file of the pair lies, by the name of its attribute; None where the record names none."""
        name = getattr(self, attribute)
        return None if name is None else (self.folder or Path()) / name


class FailedPair(_Record):
    """A pair that could not be registered, and the reason."""

    pair_id: str
    fixed: str = ""
    moving: str = ""
    failed: str


class Provenance(_Record):
    """What predicted the pairs, and how.

    Attributes:
        llmreg_version: version of this package.
        model: name of the model, or of a classical method.
        folds: that were averaged.
        epochs: that each of them was trained for.
        checkpoints: start of each checkpoint's SHA-256.
        options: attributes of :class:`llmreg.inference.predictor.RegistrationOptions`.
        format: of the fields.
        label_interpolation: how label maps were warped.
    """

    format_version: Literal[1] = 1
    llmreg_version: str | None = None
    model: str | None = None
    folds: list[str] = []
    epochs: list[int] = []
    checkpoints: list[str] = []
    options: dict[str, Any] = {}
    format: str | None = None
    label_interpolation: str | None = None

    def difference(self, other: "Provenance") -> str | None:
        """The first thing, but the version, in which this prediction differs from another; None where it does not."""
        names = [name for name in Provenance.model_fields if name not in ("format_version", "llmreg_version")]
        differing = next((name for name in names if getattr(self, name) != getattr(other, name)), None)
        return None if differing is None else f"{differing} {getattr(self, differing)}"


class Predictions(Provenance):
    """The content of ``predict.json``.

    Attributes:
        peak_memory_gb: most memory in use, GiB.
        peak_gpu_memory_gb: the same of a GPU, where one was used.
        pairs: the registered ones.
        failed: the others.
    """

    peak_memory_gb: float | None = None
    peak_gpu_memory_gb: float | None = None
    pairs: list[PredictedPair]
    failed: list[FailedPair] = []


class PairRecord(Provenance):
    """The record of a single pair.

    Attributes:
        asked: what the pair was registered from, to notice images that have changed.
        pair: the outcome.
        memory: most memory in use, GiB, by the names that :class:`Predictions` has.
        waited: seconds after which a classical method was stopped.
    """

    asked: dict[str, Any]
    # Classical methods' records called it a row.
    pair: Annotated[FailedPair | PredictedPair, Field(union_mode="left_to_right")] = Field(
        validation_alias=AliasChoices("pair", "row")
    )
    memory: dict[str, float] = {}
    waited: float | None = None


def read_predictions(folder: Path) -> Predictions:
    """Read ``predict.json``.

    Raises:
        MissingFile: there is none.
        UnreadableFile: it is not as this package writes it; the message names the key that is wrong.
    """
    predictions = Predictions.read(folder / PREDICT_FILE)
    pairs = [pair.model_copy(update={"folder": folder}) for pair in predictions.pairs]
    return predictions.model_copy(update={"pairs": pairs})


def write_predictions(folder: Path, predictions: Predictions) -> Path:
    """Write ``predict.json``; returns its path."""
    write_json(folder / PREDICT_FILE, predictions.to_json())
    return folder / PREDICT_FILE


def record_path(folder: Path, name: str) -> Path:
    """Where the record of a pair lies in a folder of predictions; ``name`` names the pair's files."""
    return folder / ".pairs" / f"{name}.json"


def read_record(folder: Path, name: str) -> PairRecord | None:
    """Read the record of a pair; None where there is none. Raises UnreadableFile as :func:`read_predictions`."""
    path = record_path(folder, name)
    return PairRecord.read(path) if path.exists() else None


def write_record(folder: Path, name: str, record: PairRecord) -> None:
    """Write the record of a pair."""
    write_json(record_path(folder, name), record.to_json())
