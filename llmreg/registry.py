"""Registries: kinds of parts (networks, loss terms, image readers, ...) to which other packages can add their own.

A part registers itself when its module is imported. A registry imports the modules of llmreg's own parts, and those
that installed packages name in the registry's entry point group, when it is asked for the first time.
"""

import importlib
import logging
from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Generic, TypeVar

from llmreg.errors import UnknownName

log = logging.getLogger(__name__)

T = TypeVar("T")


class Registry(Generic[T]):
    """The parts of one kind by their names.

    Args:
        kind: what messages call a part, such as ``network``.
        group: the entry point group, such as ``llmreg.networks``. The value of an entry point is the module that
            registers the part, as in ``toy = "toy_package.network"``.
        modules: llmreg's own modules that register parts.
    """

    def __init__(self, kind: str, group: str, modules: Iterable[str] = ()) -> None:
        self.kind, self.group = kind, group
        self._modules = tuple(modules)
        self._parts: dict[str, T] = {}

    def register(self, name: str, part: T) -> T:
        """Add a part and return it. Raises ValueError when the name is taken."""
        if name in self._parts:
            raise ValueError(f"the {self.kind} '{name}' is registered already")
        self._parts[name] = part
        return part

    @cached_property
    def parts(self) -> Mapping[str, T]:
        """All parts by name, llmreg's own first; parts that are registered later appear among them."""
        for module in self._modules:
            importlib.import_module(module)
        for entry in entry_points(group=self.group):
            try:
                entry.load()
            # The package of a stranger may fail in any way, which must not keep the others from being used.
            except Exception as error:
                log.warning("The %s '%s' of %s cannot be loaded: %s", self.kind, entry.name, entry.value, error)
        return MappingProxyType(self._parts)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all parts."""
        return tuple(self.parts)

    def get(self, name: str) -> T:
        """The part of a name. Raises UnknownName, which lists the names there are."""
        if name not in self.parts:
            explanation = "A package that adds it may be missing here."
            raise UnknownName(self.kind, name, self.names, explanation)
        return self._parts[name]
