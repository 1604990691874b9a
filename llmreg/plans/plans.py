"""plans.json: typed, versioned, made to be read and edited by people.

Sizes and spacings are in x, y, z order, as image viewers show them; lengths are in mm.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from llmreg.errors import UserError
from llmreg.files import json_digest, read_json, write_json
from llmreg.geometry.grid import Grid
from llmreg.networks.config import NETWORKS, LLMMorphSettings, NetworkSettings

PLANS_FILE = "plans.json"
# Goes up when the same plans make other volumes than before.
VOLUMES_FORMAT = 2

Size = tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
Spacing = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


def _in_order(values: tuple[float, float]) -> tuple[float, float]:
    if values[0] > values[1]:
        raise ValueError("the first number must not be larger than the second")
    return values


def _positive(values: tuple[float, float]) -> tuple[float, float]:
    if values[0] <= 0:
        raise ValueError("both numbers must be above 0")
    return values


# It is part of a folder's name, whose parts are divided by two underscores.
ConfigurationName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]+([_.-][A-Za-z0-9]+)*$")]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Range = Annotated[tuple[float, float], AfterValidator(_in_order)]
PositiveRange = Annotated[Range, AfterValidator(_positive)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AugmentationSettings(_Model):
    """What a training pair may undergo.

    Attributes:
        mirror_axes: Axes along which the whole pair is mirrored, each with probability 0.5.
        spatial_probability: Probability, for each image on its own, of a rotation, scale and translation.
        rotation: Largest rotation about each axis, degrees.
        scale: Range of the isotropic scale.
        translation: Largest translation along each axis, voxels.
        intensity_probability: Probability, for each image on its own, of each of gamma, brightness, contrast, noise.
        gamma: Range of the exponent.
        brightness: Range of the factor of the intensities.
        contrast: Range of the factor of the distance from the mean.
        noise: Range of the standard deviation of Gaussian noise.
    """

    mirror_axes: tuple[Literal["x", "y", "z"], ...] = ()
    spatial_probability: Probability = 0.2
    rotation: float = Field(default=8.0, ge=0.0, le=180.0)
    scale: PositiveRange = (0.92, 1.08)
    translation: float = Field(default=3.0, ge=0.0)
    intensity_probability: Probability = 0.3
    gamma: PositiveRange = (0.7, 1.5)
    brightness: PositiveRange = (0.8, 1.25)
    contrast: PositiveRange = (0.75, 1.25)
    noise: Range = (0.0, 0.05)


class Normalization(_Model):
    """How one modality's intensities become [0, 1].

    ``window`` clips to fixed values (HU for CT); ``percentiles`` clips to ranks of each image's own foreground.
    """

    modality: str
    scheme: Literal["window", "percentiles"]
    lower: float
    upper: float

    @model_validator(mode="after")
    def _ordered(self) -> Normalization:
        if self.lower >= self.upper:
            raise ValueError("lower must be below upper")
        if self.scheme == "percentiles" and not 0 <= self.lower < self.upper <= 100:
            raise ValueError("percentiles lie between 0 and 100")
        return self


class PreAlignment(_Model):
    """How a case finds its place in the common frame.

    ``centre``, ``rigid`` and ``affine`` are the last stage tried; a stage that makes the similarity to the reference
    case worse is dropped. ``search`` tries shifts along the body before ``rigid``. ``template`` looks for the place
    where the case fits the mean of its modality's training cases. A case whose grid equals ``aligned_grid`` lies in the
    frame already and is not moved.
    """

    method: Literal["identity", "centre", "search", "rigid", "affine", "template"]
    reference_case: str
    aligned_grid: dict[str, list[float]] | None = None


class Configuration(_Model):
    """A way to train the plan: at the frame's own resolution or at half of it.

    Attributes:
        recompute: whether training computes the network's finest level twice instead of keeping all of it in memory.
        memory_gb: estimate of what a training step needs.
    """

    downsampling: Literal[1, 2]
    padded_size: Size
    network_shape: Size
    token_grid: Size
    token_length: int
    recompute: bool = False
    memory_gb: float

    @model_validator(mode="after")
    def _agree(self) -> Configuration:
        network = tuple(n // self.downsampling for n in self.padded_size)
        if any(n % (16 * self.downsampling) for n in self.padded_size) or self.network_shape != network:
            raise ValueError(
                f"padded_size must be multiples of {16 * self.downsampling}, and network_shape padded_size / "
                f"{self.downsampling}"
            )
        tokens = tuple(n // 16 for n in network)
        if self.token_grid != tokens or self.token_length != math.prod(tokens):
            raise ValueError(f"token_grid must be {tokens} and token_length {math.prod(tokens)} for that network_shape")
        return self


class Loss(_Model):
    """Weights of the terms that training minimises (:mod:`llmreg.training.objective`).

    The paper's smoothness is 0.1. Ten times as much gave the same Dice after 1,000 steps on 24 brains (67.2 against
    67.3) and a tenth of the folding (0.19 against 1.86 %).

    Attributes:
        dice: weight of one minus soft Dice, over the structures annotated in both cases of a pair.
        similarity: weight of the image term; 0 leaves it out.
        similarity_kind: what the image term is, see :mod:`llmreg.similarity.image_terms`.
        smoothness: weight of the mean squared difference of neighbouring displacements, in voxels.
        bending: weight of the bending energy, the mean squared second derivatives of the displacement (MONAI's).
        folding: weight of the mean of what determinants of the field's Jacobian lack to zero.
    """

    dice: float = Field(default=1.0, ge=0)
    similarity: float = Field(default=0.0, ge=0)
    similarity_kind: Literal["mind", "mutual_information", "lncc"] = "mind"
    smoothness: float = Field(default=1.0, ge=0)
    bending: float = Field(default=0.0, ge=0)
    folding: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _aligns(self) -> Loss:
        if self.dice == self.similarity == 0:
            raise ValueError("dice or similarity must be above 0: nothing else aligns the images")
        return self


class Training(_Model):
    """The optimiser's settings.

    A step of the optimiser sees ``batch_size`` pairs at once, ``accumulate`` times one after the other, on each of the
    processes that train together; an epoch is ``steps_per_epoch`` steps.

    ``bidirectional`` trains one model to warp moving images onto fixed ones and the other way round: each pair is
    turned about with probability 0.5.
    """

    epochs: int = Field(default=100, ge=1)
    steps_per_epoch: int = Field(default=250, ge=1)
    learning_rate: float = Field(default=4e-4, gt=0)
    schedule: Literal["constant", "polynomial"] = "polynomial"
    clip_gradient: float | None = Field(default=10.0, gt=0)
    batch_size: int = Field(default=1, ge=1)
    accumulate: int = Field(default=1, ge=1)
    bidirectional: bool = False
    validation_pairs: int = Field(default=8, ge=1)
    autocast: Literal["bfloat16", "none"] = "bfloat16"
    seed: int = 12345


class Planned(_Model):
    """What plans were made of, so that planning again changes only what must change.

    Attributes:
        inputs: digests of the fingerprint, the machine, the options and what else there is, by their names.
        result: digest of what was planned from them; plans that differ from it were edited.
    """

    inputs: dict[str, str]
    result: str


class Plans(_Model):
    """Everything that training and prediction need to know about a dataset.

    ``spacing``, ``size`` and ``centre`` (mm, LPS) place the common frame, whose axes are LPS. ``configurations`` may
    hold others beside the planner's ``full`` and ``half``.
    """

    format_version: Literal[1] = 1
    dataset_name: str
    plans_name: str
    spacing: Spacing
    size: Size
    centre: tuple[float, float, float]
    fixed_modality: int
    moving_modality: int
    labels: dict[int, str]
    normalization: dict[int, Normalization]
    prealignment: PreAlignment
    configurations: dict[ConfigurationName, Configuration]
    default_configuration: ConfigurationName
    network: NetworkSettings = LLMMorphSettings()
    loss: Loss = Loss()
    training: Training = Training()
    augmentation: AugmentationSettings = AugmentationSettings()
    reasons: dict[str, str]
    planned: Planned | None = None

    @model_validator(mode="after")
    def _fits(self) -> Plans:
        for name, configuration in self.configurations.items():
            if any(n > padded for n, padded in zip(self.size, configuration.padded_size, strict=True)):
                raise ValueError(f"size {self.size} does not fit into configurations.{name}.padded_size")
        if self.default_configuration not in self.configurations:
            raise ValueError(f"default_configuration '{self.default_configuration}' is not among the configurations")
        return self

    @property
    def frame(self) -> Grid:
        """The grid of the common frame."""
        return Grid.axis_aligned(self.size, self.spacing, self.centre)

    def volumes_digest(self) -> str:
        """A short hash of what shapes the preprocessed volumes; experiments that agree on it share them."""
        content = self.model_dump(mode="json", include={"size", "spacing", "centre", "normalization", "prealignment"})
        content["format"] = VOLUMES_FORMAT
        return json_digest(content)[:12]

    def digest(self, configuration: str | None = None) -> str:
        """A hash of all that shapes a trained model, whatever the file's layout.

        Args:
            configuration: the one that is trained, so that others may come and go; all of them when None.
        """
        others = {name: True for name in self.configurations if configuration not in (None, name)}
        # Without defaults: a key that a file leaves out, or that a later version adds, changes nothing.
        of_configurations = others | {name: {"memory_gb", "recompute"} for name in self.configurations.keys() - others}
        derived: Any = {"reasons": True, "planned": True, "default_configuration": True}
        content = self.model_dump(
            mode="json", exclude=derived | {"configurations": of_configurations}, exclude_defaults=True
        )
        return json_digest(content)

    def configuration(self, name: str) -> Configuration:
        found = self.configurations.get(name)
        if found is None:
            known = ", ".join(self.configurations)
            raise UserError(f"The plans '{self.plans_name}' have no configuration '{name}': choose one of {known}.")
        return found


def parse_plans(content: Any, where: str) -> Plans:
    """Raises UserError that names the first key that is wrong, its path and what is expected."""
    try:
        return Plans.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        parts = [str(part) for part in first["loc"]]
        # Pydantic says which network it is before it names the key.
        if parts[:1] == ["network"] and set(parts[1:2]) & NETWORKS.keys():
            del parts[1]
        key = ".".join(parts) or "the whole file"
        raise UserError(f"{where}: {key}: {first['msg']}. Mend that key, or plan again with --overwrite.") from error


def read_plans(path: Path) -> Plans:
    return parse_plans(read_json(path), str(path))


def write_plans(path: Path, plans: Plans) -> None:
    write_json(path, plans.model_dump(mode="json"))


# The digest in the plans is that of certain layers: other ones have another.
OTHER_LAYERS = tuple(f"network.llm.{key}=" for key in ("source", "layers", "weights"))


def override(plans: Plans, assignments: list[str], name: str) -> Plans:
    """A copy called ``name`` with ``key.path=value`` assignments; values are JSON, or text where they are not."""
    content = plans.model_dump(mode="json") | {"plans_name": name}
    if "llm" in content["network"] and any(assignment.startswith(OTHER_LAYERS) for assignment in assignments):
        content["network"]["llm"]["sha256"] = None
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"'{assignment}' is not an assignment: write key=value, for example loss.smoothness=0.2.")
        *parents, last = path.split(".")
        if path == "plans_name":
            raise UserError("The plans' name is given with --as, not with --set.")
        place: Any = content
        for part in parents:
            place = place.get(part) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise UserError(f"The plans have no key '{path}': see plans.json for those there are.")
        try:
            place[last] = json.loads(text)
        except json.JSONDecodeError:
            place[last] = text
    return parse_plans(content, "The plans with --set")
