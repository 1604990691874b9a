"""Change one operator, number or condition after the other, and see whether a module's own tests notice.

The mutations are those of cosmic-ray (https://cosmic-ray.readthedocs.io). A sample is drawn from the modules below
with a seed.
Each mutant's mirrored test file runs in a copy of the repository; a mutant that no test notices survives. ::

    make mutants                                    # 300 mutants, about an hour on two cores
    python tools/mutants.py --count 20 --only geometry
    python tools/mutants.py --survivors             # the survivors of the last run

Results are kept in a JSON file, so that a second run continues with the mutants that are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from queue import SimpleQueue

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
MUTATED = (
    "geometry/*.py",
    "similarity/*.py",
    "networks/llm_morph/*.py",
    "networks/resolution.py",
    "evaluation/metrics.py",
    "inference/predictor.py",
)
# Left out are replacements that raise for floats or tensors whatever they compute, such as << for +, which any test
# notices, and those of |, which stands in type hints.
_OPERATORS = re.compile(
    r"core/(AddNot|NumberReplacer|ReplaceAndWithOr|ReplaceOrWithAnd|ReplaceTrueWithFalse|ReplaceFalseWithTrue"
    r"|ReplaceBreakWithContinue|ReplaceContinueWithBreak|ZeroIterationForLoop"
    r"|ReplaceUnaryOperator_(USub_UAdd|Delete_Not|Delete_USub)"
    r"|ReplaceBinaryOperator_(Add|Sub|Mul|Div|FloorDiv|Mod|Pow)_(Add|Sub|Mul|Div)"
    r"|ReplaceComparisonOperator_(Lt|LtE|Gt|GtE|Eq|NotEq)_(Lt|LtE|Gt|GtE|Eq|NotEq)"
    r"|ReplaceComparisonOperator_(Is_IsNot|IsNot_Is))"
)


@dataclass(frozen=True)
class Mutant:
    """One mutation of a module.

    Attributes:
        path: the module, relative to the repository.
        operator: cosmic-ray's name of what is replaced by what.
        occurrence: counts the places of the module where the operator applies.
        line: number of the line.
        text: the line before the mutation.
    """

    path: str
    operator: str
    occurrence: int
    line: int
    text: str

    @property
    def name(self) -> str:
        """Identifies the mutant as long as its line stays the same."""
        return f"{self.path}:{self.line} {self.operator.removeprefix('core/')} #{self.occurrence} in: {self.text}"

    @property
    def tests(self) -> str:
        """The module's mirrored test file, relative to the repository."""
        module = Path(self.path).relative_to("llmreg")
        return str(Path("tests") / module.parent / f"test_{module.name}")


def list_mutants(path: Path) -> Iterator[Mutant]:
    """List all mutants of a module."""
    source = path.read_text(encoding="utf-8")
    lines, tree = source.splitlines(), get_ast(source)
    for name in sorted(filter(_OPERATORS.fullmatch, operator_names())):
        operator = get_operator(name)()
        starts = (start for node in ast_nodes(tree) for start, _ in operator.mutation_positions(node))
        for occurrence, (line, _) in enumerate(starts):
            text = lines[line - 1].strip()
            if "TYPE_CHECKING" not in text:
                yield Mutant(str(path.relative_to(ROOT)), name, occurrence, line, text)


@cache
def is_baseline_passing(tests: str, copy: Path, seconds: float) -> bool:
    """Whether the tests pass in a copy of the repository without a mutant."""
    return _pass(tests, copy, seconds)


def is_noticed(mutant: Mutant, copy: Path, seconds: float) -> bool:
    """Whether the tests of a module fail, or run on for too long, with a mutant in a copy of the repository."""
    target = copy / mutant.path
    original = target.read_text(encoding="utf-8")
    mutated = mutate_code(original, get_operator(mutant.operator)(), mutant.occurrence)
    assert mutated is not None
    assert mutated != original, mutant.name
    target.write_text(mutated, encoding="utf-8")
    try:
        return not _pass(mutant.tests, copy, seconds)
    finally:
        target.write_text(original, encoding="utf-8")


def _pass(tests: str, copy: Path, seconds: float) -> bool:
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", tests]
    try:
        return not subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, timeout=seconds, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        return False


def summarise(mutants: list[Mutant], results: dict[str, str]) -> str:
    """Sum up the results in a line, and list the survivors."""
    survivors = [mutant.name for mutant in mutants if results.get(mutant.name) == "survived"]
    noticed = sum(results.get(mutant.name) == "noticed" for mutant in mutants)
    done = noticed + len(survivors)
    share = f"{100 * noticed / done:.1f} %" if done else "no"
    return "\n".join([*survivors, f"{share} of {done} mutants were noticed ({len(mutants) - done} are missing)."])


def main() -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="number of mutants (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only modules whose path contains this text")
    parser.add_argument("--seconds", type=float, default=60.0, help="limit of a mutant's tests (default: 60)")
    parser.add_argument("--processes", type=int, default=2, help="mutants that are tested at once (default: 2)")
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "mutants.json")
    parser.add_argument("--survivors", action="store_true", help="only list the survivors so far")
    options = parser.parse_args()
    files = sorted({path for pattern in MUTATED for path in (ROOT / "llmreg").glob(pattern)})
    every = [mutant for path in files if options.only in str(path) for mutant in list_mutants(path)]
    mutants = random.Random(options.seed).sample(every, min(options.count, len(every)))
    results: dict[str, str] = json.loads(options.results.read_text()) if options.results.exists() else {}
    if not options.survivors:
        test_mutants([mutant for mutant in mutants if mutant.name not in results], results, options)
    print(summarise(mutants, results))
    return 0


def test_mutants(mutants: list[Mutant], results: dict[str, str], options: argparse.Namespace) -> None:
    """Test mutants and keep each result."""
    options.results.parent.mkdir(parents=True, exist_ok=True)
    leave_out = shutil.ignore_patterns(".git", ".venv*", "build", ".*_cache", "__pycache__", "llmreg_demo")
    with tempfile.TemporaryDirectory(prefix="llmreg-mutants-") as folder:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(options.processes):
            copies.put(Path(shutil.copytree(ROOT, Path(folder) / str(number), ignore=leave_out)))

        def test(mutant: Mutant) -> str:
            copy = copies.get()
            try:
                if not (copy / mutant.tests).exists():
                    return "survived"
                if not is_baseline_passing(mutant.tests, copy, 10 * options.seconds):
                    return "untestable: the tests fail without the mutant"
                return "noticed" if is_noticed(mutant, copy, options.seconds) else "survived"
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(options.processes) as pool:
            for mutant, result in tqdm(
                zip(mutants, pool.map(test, mutants), strict=True), total=len(mutants), unit="mutant"
            ):
                results[mutant.name] = result
                options.results.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
