"""The architecture as data: floors, one place for option names, sizes of files, and names that say what they mean."""

from __future__ import annotations

import argparse
import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "llmreg"
FILES = sorted(PACKAGE.rglob("*.py"))

# From the ground up. Rooms of one line stand on one floor; an import goes to the same floor or down.
FLOORS = """
version errors arguments registry settings text_tables machine files paths devices workers pages
geometry
similarity
images
engine
networks
data
plans
preprocessing
training
predictions
inference
evaluation
api
comparison
report
sharing
commands
"""
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS.split("\n")) for room in rooms.split()}

# Files whose strings are the words of another process, and may therefore hold options.
CHILD_PROCESSES = {
    "comparison/command_lines.py": "the commands of this package that a comparison starts",
    "comparison/classical_methods.py": "greedy is driven by command lines",
}
MOST_LINES = 400
# Every network's folder has these files.
FILES_OF_NETWORKS = {"network.py", "plugin.py"}
# Modules without tests of their own.
NOT_MIRRORED = {
    "version.py": "a single constant",
}
IRREGULAR_PARTICIPLES = set(
    """begun built chosen come done drawn drunk fallen felt fit found given gone grown had held hidden kept known laid
    learnt led left lent lost made meant met paid risen said seen sent shown spent spoken stolen taken taught thrown
    told thought torn understood won worn written""".split()  # noqa: SIM905
)
VERBS_IN_ED = {"embed", "exceed", "feed", "need", "proceed", "seed", "shed", "speed", "succeed"}
MEANINGLESS_LOCALS = {"asked", "found", "given", "made", "one", "own", "there", "wanted"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def room_of(module: str) -> str:
    return module.split(".")[1]


def locate(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def imports_of(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """Modules of this package that a file imports, in functions and for type checkers as well."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{locate(path, node)}: a relative import"
            members = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [member if member in MODULES else str(node.module) for member in members]
        else:
            continue
        yield from ((name, node) for name in names if name.split(".")[0] == "llmreg")


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(module) for module in MODULES if module != "llmreg"}
    assert rooms <= FLOOR_OF.keys(), f"rooms without a floor: {sorted(rooms - FLOOR_OF.keys())}"


@pytest.mark.parametrize("module", [module for module in MODULES if module != "llmreg"])
def test_no_import_goes_up(module: str) -> None:
    path, arrows = MODULES[module], []
    for imported, node in imports_of(path):
        if imported == "llmreg":
            arrows.append(f"{locate(path, node)}: imports the package itself")
        elif FLOOR_OF[room_of(imported)] > FLOOR_OF[room_of(module)]:
            arrows.append(f"{locate(path, node)}: {room_of(module)} imports {imported}, which stands higher")
    assert not arrows, "\n".join(arrows)


def test_no_modules_import_each_other_in_a_circle() -> None:
    lines = {
        module: {imported: locate(path, node) for imported, node in imports_of(path) if imported != module}
        for module, path in MODULES.items()
        if module != "llmreg"
    }
    finished: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        if module in trail:
            circle = (*trail[trail.index(module) :], module)
            steps = [f"{lines[start][end]}: {start} imports {end}" for start, end in pairwise(circle)]
            pytest.fail("a circle:\n" + "\n".join(steps))
        if module in finished:
            return
        for imported in lines.get(module, {}):
            visit(imported, (*trail, module))
        finished.add(module)

    for module in lines:
        visit(module, ())


def parsers() -> Iterator[argparse.ArgumentParser]:
    for path in sorted((PACKAGE / "commands").glob("*.py")):
        module = import_module(module_name(path))
        if hasattr(module, "build_parser"):
            yield module.build_parser()


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    options = set()
    for action in parser._actions:
        options |= set(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            options |= {option for choice in action.choices.values() for option in options_of(choice)}
    return options


def test_options_are_spelled_with_underscores() -> None:
    for parser in parsers():
        for action in parser._actions:
            if action.help != argparse.SUPPRESS:
                assert all(re.fullmatch(r"-[a-z]|--[a-z0-9]+(_[a-z0-9]+)*", o) for o in action.option_strings)


def test_only_commands_name_options() -> None:
    options = {option for parser in parsers() for option in options_of(parser)}
    assert {"--overwrite", "-d", "--protocol"} <= options
    violations = []
    for path in FILES:
        relative = path.relative_to(PACKAGE).as_posix()
        if relative.startswith("commands/") or relative in CHILD_PROCESSES:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words = re.findall(r"(?<![\w/-])--?[A-Za-z][\w-]*", node.value)
                spelled = {word: "--" + word[2:].replace("-", "_") if word.startswith("--") else word for word in words}
                violations += [f"{locate(path, node)}: {word}" for word in words if spelled[word] in options]
    assert not violations, "options in strings outside commands:\n" + "\n".join(violations)


def test_files_are_short() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in FILES}
    long_files = [
        f"{path.relative_to(ROOT)}: {length} lines" for path, length in lengths.items() if length > MOST_LINES
    ]
    assert not long_files, "\n".join(long_files)


def is_file_of_a_network(path: Path) -> bool:
    return path.name in FILES_OF_NETWORKS and path.relative_to(PACKAGE).match("networks/*/*")


def test_no_two_modules_share_a_name() -> None:
    homes = defaultdict(list)
    for path in FILES:
        # A command has the name of what it calls in the library, and the same subject.
        if path.stem != "__init__" and path.parent.name != "commands" and not is_file_of_a_network(path):
            homes[path.stem].append(str(path.relative_to(ROOT)))
    shared_names = [f"{name}: {', '.join(paths)}" for name, paths in homes.items() if len(paths) > 1]
    assert not shared_names, "\n".join(shared_names)


def test_every_network_has_its_files() -> None:
    folders = {path.parent for path in FILES if is_file_of_a_network(path)}
    assert folders
    assert all((folder / name).exists() for folder in folders for name in FILES_OF_NETWORKS)


def mirror_of(relative: str) -> Path:
    path = Path(relative)
    return ROOT / "tests" / path.parent / f"test_{path.name}"


def test_every_module_has_tests_of_its_own() -> None:
    modules = {path.relative_to(PACKAGE).as_posix() for path in FILES if path.stem != "__init__"}
    missing = {module for module in modules if not mirror_of(module).exists()}
    assert missing == NOT_MIRRORED.keys(), f"modules without tests, or with some: {missing ^ NOT_MIRRORED.keys()}"


def test_the_modules_of_mutants_are_there() -> None:
    """``make mutants`` needs a library that tests do without, so its list is read."""
    tree = ast.parse((ROOT / "tools" / "mutants.py").read_text())
    (patterns,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MUTATED"
    )
    assert all(any(PACKAGE.glob(pattern)) for pattern in patterns)


def is_participle(name: str) -> bool:
    word = name.strip("_").lower()
    if "_" in word or word in VERBS_IN_ED:
        return False
    return word in IRREGULAR_PARTICIPLES or word.endswith("ed")


def is_property(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("property" in ast.unparse(decorator) for decorator in function.decorator_list)


def test_functions_are_not_bare_participles() -> None:
    violations = [
        f"{locate(path, node)}: {node.name}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if is_participle(node.name) and not is_property(node)
    ]
    assert not violations, "functions named by a participle:\n" + "\n".join(violations)


def names_bound_in(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Locals, loop variables and arguments; not the fields of classes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                    yield inner.id, inner
                elif isinstance(inner, ast.arg):
                    yield inner.arg, inner


def test_locals_are_named_after_what_they_hold() -> None:
    violations = {
        f"{locate(path, node)}: {name}"
        for path in FILES
        for name, node in names_bound_in(ast.parse(path.read_text()))
        if name.strip("_") in MEANINGLESS_LOCALS
    }
    assert not violations, "locals that do not say what they hold:\n" + "\n".join(sorted(violations))
