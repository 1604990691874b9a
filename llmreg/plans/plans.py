"""``plans.json``: what training and prediction need to know about a dataset; typed, versioned, edited by people."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from llmreg.engine.prealignment import PreAlignment
from llmreg.errors import BadAssignment, BadPlans, NotPrepared, UnknownName
from llmreg.files import json_digest, read_json, write_json
from llmreg.geometry.grid import Grid
from llmreg.networks.network_registry import DEFAULT_NETWORK, AnyNetworkSettings, network_settings, plugin_of
from llmreg.plans.plan_settings import (
    AugmentationSettings,
    Configuration,
    ConfigurationName,
    Normalization,
    Size,
    Spacing,
    Training,
)
from llmreg.settings import Settings, locate_problem
from llmreg.similarity.loss_settings import LossSettings

PLANS_FILE = "plans.json"
# This number goes up when the same plans lead to other volumes than before.
VOLUMES_FORMAT = 2


class PlanningRecord(Settings):
    """A record of what plans were planned from, so that planning again changes only what must change.

    Attributes:
        inputs: digests of the fingerprint, the machine, the options and so on, by their names.
        result: digest of the planner's decisions; plans with another one were edited.
    """

    inputs: dict[str, str]
    result: str


class Plans(Settings):
    """Everything that training and prediction need to know about a dataset.

    Attributes:
        format_version: of this file.
        dataset_name: the name of the dataset's folder.
        plans_name: the name of the plans.
        spacing: of the common frame, mm, along the LPS axes.
        size: of the common frame in voxels.
        centre: of the common frame, mm, LPS.
        fixed_modality: the number of the fixed images' modality.
        moving_modality: that of the moving images.
        labels: names of the structures by label id.
        normalization: of each modality by its number.
        prealignment: how cases are placed in the common frame.
        configurations: the planner's ``full`` and ``half``, and others that the user added.
        default_configuration: the one that is trained unless another is chosen.
        network: settings of the network.
        loss: weights of the loss terms.
        training: settings of the optimiser.
        augmentation: what training pairs undergo.
        reasons: a sentence for each decision of the planner.
        planned: what the plans were planned from; None in plans that were written by hand.
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
    network: AnyNetworkSettings = Field(default_factory=partial(network_settings, DEFAULT_NETWORK))
    loss: LossSettings = LossSettings()
    training: Training = Training()
    augmentation: AugmentationSettings = AugmentationSettings()
    reasons: dict[str, str]
    planned: PlanningRecord | None = None

    @model_validator(mode="after")
    def _check_configurations(self) -> Self:
        for name, configuration in self.configurations.items():
            if any(n > padded for n, padded in zip(self.size, configuration.padded_size, strict=True)):
                raise ValueError(f"size {self.size} does not fit into configurations.{name}.padded_size")
            if problem := plugin_of(self.network).shape_problem(
                self.network, configuration.network_shape, configuration.token_grid
            ):
                raise ValueError(f"configurations.{name}: {problem}")
        if self.default_configuration not in self.configurations:
            raise ValueError(f"default_configuration '{self.default_configuration}' is not among the configurations")
        return self

    @property
    def frame(self) -> Grid:
        """The grid of the common frame."""
        return Grid.from_centre(self.size, self.spacing, self.centre)

    def volumes_digest(self) -> str:
        """A short hash of everything that the preprocessed volumes depend on; plans with the same one share volumes."""
        content = self.model_dump(mode="json", include={"size", "spacing", "centre", "normalization", "prealignment"})
        return json_digest(content | {"format": VOLUMES_FORMAT})[:12]

    def digest(self, configuration: str | None = None) -> str:
        """A hash of everything that a trained model depends on, whatever the file's layout.

        Args:
            configuration: the only configuration that counts, so that others may be added and removed; all of them
                when None.
        """
        other_configurations = {name: True for name in self.configurations if configuration not in (None, name)}
        # Defaults are left out: a key that is missing in a file, or that a later version adds, changes nothing.
        of_configurations = other_configurations | {
            name: {"memory_gb", "recompute"} for name in self.configurations.keys() - other_configurations
        }
        excluded: Any = {
            "reasons": True,
            "planned": True,
            "default_configuration": True,
            "configurations": of_configurations,
        }
        return json_digest(self.model_dump(mode="json", exclude=excluded, exclude_defaults=True))

    def configuration(self, name: str) -> Configuration:
        """The configuration of a name. Raises UnknownName when there is none."""
        if name not in self.configurations:
            raise UnknownName("configuration", name, tuple(self.configurations))
        return self.configurations[name]


def parse_plans(content: Any, where: str) -> Plans:
    """Validate plans that were read as JSON.

    Args:
        content: what was read.
        where: the file, or another name for error messages.

    Raises:
        BadPlans: names the first key that is wrong.
    """
    try:
        return Plans.model_validate(content)
    except ValidationError as error:
        raise BadPlans(where, *locate_problem(error)) from error


def read_plans(path: Path) -> Plans:
    """Read a plans file. Raises UserError when it is missing, and BadPlans when a key is wrong."""
    return parse_plans(read_json(path), str(path))


def write_plans(path: Path, plans: Plans) -> None:
    """Write a plans file."""
    write_json(path, plans.model_dump(mode="json"))


def plans_path(folder: Path, name: str) -> Path:
    """The file of plans in a dataset's preprocessed folder."""
    return folder / (PLANS_FILE if name == "default" else f"plans_{name}.json")


def find_plans(folder: Path, name: str) -> Plans:
    """Read plans by their name.

    Raises:
        NotPrepared: there are no plans of that name.
        BadPlans: the file is damaged or holds plans of another name.
    """
    path = plans_path(folder, name)
    if not path.exists():
        raise NotPrepared(path, "plan", dataset=folder.name)
    plans = read_plans(path)
    if plans.plans_name != name:
        raise BadPlans(path, "plans_name", f"it is '{plans.plans_name}', but must be '{name}' as in the file's name")
    return plans


def override(plans: Plans, assignments: Sequence[str], name: str) -> Plans:
    """Copy plans under another name with some keys changed.

    Args:
        plans: the plans to start from.
        assignments: ``key.path=value`` each; values are JSON, or text where they are not.
        name: the copy's name.

    Raises:
        BadAssignment: an assignment has no value, or names a key that plans do not have.
        BadPlans: the changed plans are not valid.
    """
    network = plugin_of(plans.network).without_digests(plans.network, assignments)
    content = plans.model_copy(update={"network": network}).model_dump(mode="json") | {"plans_name": name}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise BadAssignment(assignment, "is not an assignment: write key=value, as in loss.smoothness=0.2")
        if path == "plans_name":
            raise BadAssignment(assignment, "names the plans, which is not done by an assignment")
        *parents, last = path.split(".")
        section: Any = content
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
        if not isinstance(section, dict):
            raise BadAssignment(assignment, "names a key that the plans do not have: see plans.json for its keys")
        try:
            section[last] = json.loads(text)
        except json.JSONDecodeError:
            section[last] = text
    return parse_plans(content, "The changed plans")
