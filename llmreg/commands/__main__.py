"""``python -m llmreg.commands NAME ...`` is the command ``llmreg_NAME ...``, which needs no installed script."""

import sys
from importlib import import_module

if __name__ == "__main__":
    name, *words = sys.argv[1:]
    sys.argv[0] = f"llmreg_{name}"
    raise SystemExit(import_module(f"llmreg.commands.{name}").main(words))
