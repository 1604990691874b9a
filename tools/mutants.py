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
import random
import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from changed_copies import ROOT, Results, copy_repository, find_mirrored_test, judge
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from tqdm import tqdm

MUTATED = (
    "geometry/*.py",
    "similarity/*.py",
    "networks/llm_morph/*.py",
    "networks/registration_network.py",
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


def find_modules() -> list[Path]:
    """The modules that :data:`MUTATED` names; a pattern that names none ends the program."""
    files = {pattern: list((ROOT / "llmreg").glob(pattern)) for pattern in MUTATED}
    if stale := [pattern for pattern, paths in files.items() if not paths]:
        raise SystemExit(f"No file of llmreg is called {' or '.join(stale)}: correct MUTATED in {Path(__file__).name}.")
    return sorted({path for paths in files.values() for path in paths})


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


def test_mutant(mutant: Mutant, copy: Path, seconds: float) -> str:
    """Test a mutant in a copy of the repository; see :func:`changed_copies.judge`."""

    def mutate(source: str) -> str:
        mutated = mutate_code(source, get_operator(mutant.operator)(), mutant.occurrence)
        assert mutated is not None
        assert mutated != source, mutant.name
        return mutated

    tests = find_mirrored_test(mutant.path)
    return judge(mutant.path, mutate, (tests,) if (copy / tests).exists() else (), copy, seconds)


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
    modules = [path for path in find_modules() if options.only in str(path)]
    all_mutants = [mutant for path in modules for mutant in list_mutants(path)]
    mutants = random.Random(options.seed).sample(all_mutants, min(options.count, len(all_mutants)))
    results = Results(options.results)
    if not options.survivors:
        test_mutants([mutant for mutant in mutants if mutant.name not in results.by_name], results, options)
    print(results.summarise([mutant.name for mutant in mutants], "mutants"))
    return 0


def test_mutants(mutants: list[Mutant], results: Results, options: argparse.Namespace) -> None:
    """Test mutants and keep each result."""
    with tempfile.TemporaryDirectory(prefix="llmreg-mutants-") as folder:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(options.processes):
            copies.put(copy_repository(Path(folder) / str(number)))

        def test(mutant: Mutant) -> str:
            copy = copies.get()
            try:
                return test_mutant(mutant, copy, options.seconds)
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(options.processes) as pool:
            for mutant, result in tqdm(
                zip(mutants, pool.map(test, mutants), strict=True), total=len(mutants), unit="mutant"
            ):
                results.keep(mutant.name, result)


if __name__ == "__main__":
    raise SystemExit(main())
