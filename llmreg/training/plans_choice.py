"""Choosing the plans of an experiment: those of a name, or a changed copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmreg.errors import BadName, OtherPlans, UnnamedChanges
from llmreg.model_folder import is_word
from llmreg.networks.registry import default_settings, plugin_of
from llmreg.plans.overrides import override
from llmreg.plans.plans import Plans, find_plans, plans_path, read_plans


@dataclass(frozen=True)
class PlansChoice:
    """Which plans to train, and how to change them.

    Attributes:
        plans: name of the plans.
        changes: assignments ``key.path=value``.
        name: name of the changed plans; that of the ablation when None.
        ablation: name of a part of the network to leave out.
        network: name of another network than the plans', which gets its default settings.
    """

    plans: str = "default"
    changes: Sequence[str] = ()
    name: str | None = None
    ablation: str | None = None
    network: str | None = None


def choose_plans(folder: Path, choice: PlansChoice) -> Plans:
    """Read the chosen plans of a preprocessed dataset and change them; nothing is written.

    Plans with another network keep their name, because the network is part of the model folder's name.

    Raises:
        UnnamedChanges: changes have no name, or a name no changes.
        BadName: the name cannot be part of a folder's name.
        OtherPlans: there are other plans of that name.
        UserError: there are no such plans, or the changes do not fit them.
    """
    plans, changes, name = find_plans(folder, choice.plans), list(choice.changes), choice.name
    if choice.network is not None and choice.network != plans.network.name:
        reasons = {key: reason for key, reason in plans.reasons.items() if not key.startswith("network.")}
        plans = plans.model_copy(update={"network": default_settings(choice.network), "reasons": reasons})
    if choice.ablation is not None:
        name = name or (choice.ablation if choice.plans == "default" else f"{choice.plans}_{choice.ablation}")
        # The ablation depends on the changed plans, such as the number of their layers.
        network = override(plans, changes, name).network
        changes += plugin_of(network).ablation(network, choice.ablation).changes
    if bool(changes) != bool(name) and not (name and choice.network):
        raise UnnamedChanges(name)
    if name is None:
        return plans
    if not is_word(name):
        raise BadName("plans", name)
    changed = override(plans, changes, name)
    path = plans_path(folder, name)
    if path.exists() and read_plans(path).digest() != changed.digest():
        raise OtherPlans(path)
    return changed
