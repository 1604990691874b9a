"""Settings that plans hold and that no lower room declares: intensities, configurations, training and augmentation.

Sizes and spacings are in x, y, z order, as image viewers show them; lengths are in mm.
"""

import math
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from llmreg.settings import Settings

Size = tuple[PositiveInt, PositiveInt, PositiveInt]
Spacing = tuple[PositiveFloat, PositiveFloat, PositiveFloat]


def _check_order(values: tuple[float, float]) -> tuple[float, float]:
    if values[0] > values[1]:
        raise ValueError("the first number must not be larger than the second")
    return values


# The name is part of a model folder's name, whose parts are divided by two underscores.
ConfigurationName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]+([_.-][A-Za-z0-9]+)*$")]
PositiveRange = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_check_order)]


class AugmentationSettings(Settings):
    """Random changes of a training pair.

    Attributes:
        mirror_axes: axes along which the whole pair is mirrored, each with probability 0.5.
        spatial_probability: probability of a rotation, scale and translation, drawn for each image.
        rotation: largest rotation about each axis, degrees.
        scale: range of the isotropic scale.
        translation: largest translation along each axis, voxels.
        intensity_probability: probability of each of gamma, brightness, contrast and noise, drawn for each image.
        gamma: range of the exponent.
        brightness: range of the factor of the intensities.
        contrast: range of the factor of the distance from the mean.
        noise: range of the standard deviation of Gaussian noise.
    """

    mirror_axes: tuple[Literal["x", "y", "z"], ...] = ()
    spatial_probability: float = Field(default=0.2, ge=0.0, le=1.0)
    rotation: float = Field(default=8.0, ge=0.0, le=180.0)
    scale: PositiveRange = (0.92, 1.08)
    translation: float = Field(default=3.0, ge=0.0)
    intensity_probability: float = Field(default=0.3, ge=0.0, le=1.0)
    gamma: PositiveRange = (0.7, 1.5)
    brightness: PositiveRange = (0.8, 1.25)
    contrast: PositiveRange = (0.75, 1.25)
    noise: Annotated[tuple[float, float], AfterValidator(_check_order)] = (0.0, 0.05)


class Normalization(Settings):
    """How one modality's intensities become [0, 1].

    Attributes:
        modality: its name.
        scheme: ``window`` clips to fixed values (HU for CT); ``percentiles`` clips to percentiles of each image's own
            foreground.
        lower: the value or percentile that becomes 0.
        upper: the value or percentile that becomes 1.
    """

    modality: str
    scheme: Literal["window", "percentiles"]
    lower: float
    upper: float

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        if self.lower >= self.upper:
            raise ValueError("lower must be below upper")
        if self.scheme == "percentiles" and not 0 <= self.lower < self.upper <= 100:
            raise ValueError("percentiles lie between 0 and 100")
        return self


class Configuration(Settings):
    """A way to train plans: at the resolution of the common frame, or at half of it.

    Attributes:
        downsampling: 1 for full and 2 for half resolution.
        padded_size: the frame's size, padded to a multiple of what the network takes; x, y, z.
        network_shape: the size of the images that the network sees, x, y, z.
        token_grid: the tokens of the network, or the voxels of its coarsest features, along each axis.
        token_length: their number.
        recompute: whether training uses gradient checkpointing for the network's finest level.
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
    def _check_shapes(self) -> Self:
        if any(n != padded / self.downsampling for n, padded in zip(self.network_shape, self.padded_size, strict=True)):
            raise ValueError(f"network_shape must be padded_size / {self.downsampling}")
        if self.token_length != math.prod(self.token_grid):
            raise ValueError(f"token_length must be {math.prod(self.token_grid)}, the product of token_grid")
        return self


class Training(Settings):
    """The optimiser's settings.

    Attributes:
        epochs: their number.
        steps_per_epoch: steps of the optimiser in an epoch.
        learning_rate: of Adam, at the start.
        schedule: ``polynomial`` lowers the learning rate to 0 with the exponent 0.9, ``constant`` keeps it.
        clip_gradient: the largest norm of the gradient; None for no limit.
        batch_size: pairs that a process computes at once.
        accumulate: batches of each process whose gradients are added up for a step.
        bidirectional: whether fixed and moving image are swapped with probability 0.5, so that one model learns both
            directions.
        validation_pairs: pairs that are validated after each epoch.
        autocast: the type of mixed precision.
        seed: of all random numbers.
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
