"""What every command shares: its parser, its log, and one sentence with exit code 2 for a user's mistake."""

import argparse
import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from llmreg.commands.hints import OUT_OF_MEMORY_HINT, hint
from llmreg.errors import Interrupted, UserError

INTERRUPTED = 130
# The disk is full, or the user's share of it is. Windows has no quota.
FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
# These libraries log what users need not know.
_CHATTY = ("matplotlib", "PIL", "fontTools", "filelock", "urllib3", "httpx", "httpcore", "numexpr")


class _Parser(argparse.ArgumentParser):
    """A parser that reads ``--like-this`` as ``--like_this``, as earlier versions spelled some options."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_known_args(spell_with_underscores(sys.argv[1:] if args is None else args), namespace)


def spell_with_underscores(arguments: Sequence[str]) -> list[str]:
    """Spell the names of long options with underscores; values, and what follows ``--``, stay as they are."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [_spell_option(argument) for argument in arguments[:end]] + list(arguments[end:])


def _spell_option(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if name.startswith("--") else argument


def create_parser(description: str, examples: str) -> argparse.ArgumentParser:
    """Create an argument parser whose ``--help`` ends with examples."""
    parser = _Parser(
        description=description,
        epilog="examples:\n" + examples.rstrip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--verbose", action="store_true", help="log more than usual")
    return parser


def literal(text: str) -> str:
    """A part's own words for a help text, in which argparse would replace what follows a percent sign."""
    return text.replace("%", "%%")


def accept_old_spelling(parser: argparse._ActionsContainer, spelling: str, **settings: Any) -> None:
    """Accept an option that an earlier version had, without showing it. ``settings`` name at least ``dest``."""
    parser.add_argument(spelling, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **settings)


def positive(text: str) -> int:
    """An argument type: a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1")
    return int(text)


def whole(text: str) -> int:
    """An argument type: a whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0")
    return int(text)


def positive_number(text: str) -> float:
    """An argument type: a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return number


def create_main(
    build_parser: Callable[[], argparse.ArgumentParser], action: Callable[[argparse.Namespace], None]
) -> Callable[..., int]:
    """Create a command's ``main``: it takes the words of the command line, or None for those of this process."""
    return partial(run, action, build_parser)


def run(
    action: Callable[[argparse.Namespace], None],
    build_parser: Callable[[], argparse.ArgumentParser],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse ``argv``, call ``action`` with the result, and write a :class:`UserError` with its hint as one sentence.

    Args:
        action: does what the options say; they include ``words``, the command line itself.
        build_parser: builds the command's parser.
        argv: the command line without the command's name; that of this process when None.

    Returns:
        The exit code: 0, 2 for a user's mistake, 130 when interrupted, 143 when terminated after the work was saved.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    options = build_parser().parse_args(words, argparse.Namespace(words=words))
    # Only the first of the processes that torchrun starts reports progress.
    progress = logging.DEBUG if options.verbose else logging.INFO
    level = progress if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr, force=True)
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        action(options)
    except UserError as error:
        sys.stderr.write(" ".join(["error:", str(error), hint(error)]).rstrip() + "\n")
        return 2
    except MemoryError as error:
        return _report_shortage(f"memory ({error})" if str(error) else "memory")
    except OSError as error:
        if error.errno not in FULL:
            raise
        return _report_shortage(f"space on the disk of {error.filename}" if error.filename else "space on the disk")
    except Interrupted as interruption:
        sys.stderr.write(" ".join([str(interruption), hint(interruption)]).rstrip() + "\n")
        return interruption.exit_code
    except RuntimeError as error:
        # This is torch's class for CUDA memory; importing torch here would slow every command.
        if type(error).__name__ != "OutOfMemoryError":
            raise
        return _report_shortage("memory")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    return 0


def _report_shortage(resource: str) -> int:
    sys.stderr.write(f"error: The computer ran out of {resource}. {OUT_OF_MEMORY_HINT}\n")
    return 2
