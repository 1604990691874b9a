"""Print the lowest versions that pyproject.toml allows, as constraints for pip.

``torch>=2.13`` becomes ``torch==2.13``. The Makefile installs them for ``make test-lowest``. Tools of the extra ``dev``
are left out, apart from those that tests import: their newest versions check the code.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

TESTED = ("pytest", "pytest-xdist", "hypothesis")


def lowest_versions(project: dict) -> list[str]:
    """Turn the requirements of a ``[project]`` table into exact versions."""
    tools = [requirement for requirement in project["optional-dependencies"]["dev"] if requirement.startswith(TESTED)]
    return [requirement.replace(">=", "==") for requirement in project["dependencies"] + tools]


if __name__ == "__main__":
    content = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    print("\n".join(lowest_versions(content["project"])))
