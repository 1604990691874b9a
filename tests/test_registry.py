import logging
import sys

import pytest
from outside_packages import write_package

from llmreg.errors import UnknownName
from llmreg.registry import Registry


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package that consists of one module and one entry point, for this test only."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(module: str, source: str, group: str = "tests.things") -> None:
        write_package(tmp_path, module, source, group)
        monkeypatch.delitem(sys.modules, module, raising=False)

    return write


THINGS: Registry[int] = Registry("thing", "tests.things")


@pytest.fixture
def things(monkeypatch):
    registry: Registry[int] = Registry("thing", "tests.things")
    monkeypatch.setattr(sys.modules[__name__], "THINGS", registry)
    return registry


def test_parts_are_found_by_their_names(things):
    things.register("one", 1)
    things.register("two", 2)
    assert things.get("two") == 2
    assert things.names == ("one", "two")
    assert dict(things.parts) == {"one": 1, "two": 2}


def test_an_unknown_name_is_refused_with_those_there_are(things):
    things.register("one", 1)
    with pytest.raises(UnknownName) as error:
        things.get("three")
    assert (error.value.kind, error.value.name, error.value.known) == ("thing", "three", ("one",))


def test_a_name_is_given_once(things):
    things.register("one", 1)
    with pytest.raises(ValueError, match="one"):
        things.register("one", 2)
    assert things.get("one") == 1


def test_an_installed_package_adds_a_part(things, install):
    install("outside_thing", f"from {__name__} import THINGS\nTHINGS.register('outside', 7)\n")
    assert things.get("outside") == 7


def test_a_broken_package_is_reported_and_the_others_are_used(things, install, caplog):
    install("broken_thing", "raise RuntimeError('half installed')\n")
    install("working_thing", f"from {__name__} import THINGS\nTHINGS.register('working', 8)\n")
    with caplog.at_level(logging.WARNING):
        assert things.names == ("working",)
    assert [("broken_thing" in message, "half installed" in message) for message in caplog.messages] == [(True, True)]


def test_own_modules_are_imported_when_the_registry_is_first_asked(install):
    install("own_thing", "raise_is_not_called = True\n", group="tests.unused")
    registry: Registry[int] = Registry("thing", "tests.things", ["own_thing"])
    assert "own_thing" not in sys.modules
    assert registry.names == ()
    assert "own_thing" in sys.modules
