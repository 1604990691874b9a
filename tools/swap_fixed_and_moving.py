"""Exchange ``fixed`` and ``moving`` in one call after the other, and see whether a test notices.

A registration that warps the wrong image still runs. This program takes the calls of the rooms below, exchanges the two
words in the arguments of one call, and runs the tests of that module in a copy of the repository. A swap that no test
notices survives. ::

    python tools/swap_fixed_and_moving.py                  # every call
    python tools/swap_fixed_and_moving.py --count 30       # a sample with a seed
    python tools/swap_fixed_and_moving.py --list           # the calls alone

Results are kept in a JSON file, so that a second run goes on with what is missing.
"""

from __future__ import annotations

import argparse
import ast
import random
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from changed_copies import ROOT, Results, copy_repository, find_mirrored_test, judge
from tqdm import tqdm

from llmreg import errors

ROOMS = ("networks", "training", "inference")
WORDS = {"moving": "fixed", "fixed": "moving"}
# A word of an identifier or of a key, such as ``moving_features`` or ``batch["moving"]``.
PATTERN = re.compile(r"(?<![A-Za-z0-9])(moving|fixed)(?![A-Za-z0-9])")
# Tests beside a module's own, which test what joins the modules of a room.
WHOLE = {
    "networks": ("tests/networks",),
    "training": ("tests/training", "tests/commands/test_training_engine.py"),
    "inference": ("tests/inference", "tests/commands/test_predict.py"),
}


@dataclass(frozen=True)
class Swap:
    """One call with the two words exchanged.

    Attributes:
        path: the module, relative to the repository.
        line: the first line of the call.
        before: the call's source.
        source: the whole module with the swap.
    """

    path: str
    line: int
    before: str
    source: str

    @property
    def name(self) -> str:
        return f"{self.path}:{self.line} {self.before}"


def find_swaps(path: Path) -> Iterator[Swap]:
    """Yield a swap for every call of a module whose own arguments name one of the images."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    starts = [0]
    for text in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(text.encode()))
    raw = source.encode()

    def span(node: ast.expr | ast.keyword) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset

    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or _is_message(call):
            continue
        arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
        inner = [span(node) for node in ast.walk(call) if isinstance(node, ast.Call) and node is not call]
        edits = []
        for argument in arguments:
            begin, end = span(argument)
            for match in PATTERN.finditer(raw[begin:end].decode()):
                offset = begin + len(raw[begin:end].decode()[: match.start()].encode())
                if not any(first <= offset < last for first, last in inner):
                    edits.append((offset, match[0]))
        if edits:
            changed = raw
            for offset, word in sorted(set(edits), reverse=True):
                changed = changed[:offset] + WORDS[word].encode() + changed[offset + len(word) :]
            first, last = span(call)
            text = " ".join(raw[first:last].decode().split())
            yield Swap(str(path.relative_to(ROOT)), call.lineno, text, changed.decode())


def _is_message(call: ast.Call) -> bool:
    """Whether a call only makes a sentence: an error or a line of the log."""
    name = ast.unparse(call.func)
    return name.startswith("log.") or name.endswith("Error") or hasattr(errors, name)


def test_swap(swap: Swap, copy: Path, seconds: float) -> str:
    """Test a swap in a copy of the repository; see :func:`changed_copies.judge`."""
    tests = (find_mirrored_test(swap.path), *WHOLE[Path(swap.path).parts[1]])
    existing = tuple(name for name in tests if (copy / name).exists())
    return judge(swap.path, lambda source: swap.source, existing, copy, seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, help="so many calls, drawn at random; all of them by default")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument("--rooms", nargs="+", choices=ROOMS, default=ROOMS)
    parser.add_argument("--list", action="store_true", help="only list the calls")
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "swaps.json")
    parser.add_argument("--seconds", type=float, default=300.0, help="a run of tests may take (default: 300)")
    options = parser.parse_args()
    files = sorted(path for room in options.rooms for path in (ROOT / "llmreg" / room).rglob("*.py"))
    swaps = [swap for path in files for swap in find_swaps(path)]
    if options.count is not None:
        swaps = random.Random(options.seed).sample(swaps, min(options.count, len(swaps)))
    if options.list:
        print("\n".join(swap.name for swap in swaps))
        return 0
    results = Results(options.results)
    with tempfile.TemporaryDirectory(prefix="llmreg-swaps-") as folder:
        copy = copy_repository(Path(folder) / "copy")
        for swap in tqdm([swap for swap in swaps if swap.name not in results.by_name], unit="swap"):
            results.keep(swap.name, test_swap(swap, copy, options.seconds))
    print(results.summarise([swap.name for swap in swaps], "swaps"))
    return int(any(results.by_name[swap.name] == "survived" for swap in swaps))


if __name__ == "__main__":
    raise SystemExit(main())
