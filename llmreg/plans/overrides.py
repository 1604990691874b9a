"""Changes of plans by ``key.path=value`` assignments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llmreg.errors import BadAssignment
from llmreg.plans.plans import Plans, parse_plans

# The digest in the plans is that of the layers that these keys choose: other layers have another digest.
_LAYER_KEYS = tuple(f"network.llm.{key}=" for key in ("source", "layers", "weights"))


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
    content = plans.model_dump(mode="json") | {"plans_name": name}
    if "llm" in content["network"] and any(assignment.startswith(_LAYER_KEYS) for assignment in assignments):
        content["network"]["llm"]["sha256"] = None
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
