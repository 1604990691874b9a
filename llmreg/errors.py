"""The exceptions that reach a user as a sentence instead of a traceback."""

from __future__ import annotations

import signal


class UserError(Exception):
    """Something the user can mend. The message is one sentence: which file, what is wrong, what to do.

    The command line prints it and exits with code 2 (see :mod:`llmreg.commands.shell`).
    """


class Interrupted(Exception):
    """Work that was stopped by a signal and left what it had done in a state to go on from.

    Attributes:
        exit_code: 128 and the signal's number, as shells have it: 130 for Ctrl-C, 143 for a termination.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(f"{signal.Signals(number).name}: {message}")
        self.exit_code = 128 + number
