"""``python -m llmreg.commands NAME ...`` is the command ``llmreg_NAME ...``, which needs no installed script."""

import sys
from importlib import import_module
from pathlib import Path

from llmreg.errors import UnknownName

# All modules of this folder but for those that commands share.
_NAMES = sorted({path.stem for path in Path(__file__).parent.glob("[a-z]*.py")} - {"hints", "shared_options", "shell"})

if __name__ == "__main__":
    name, *words = sys.argv[1:] or [""]
    if name not in _NAMES:
        sys.stderr.write(f"error: {UnknownName('command', name, _NAMES)}\n")
        raise SystemExit(2)
    sys.argv[0] = f"llmreg_{name}"
    raise SystemExit(import_module(f"llmreg.commands.{name}").main(words))
