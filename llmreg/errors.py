"""The one exception that reaches a user as a sentence instead of a traceback."""


class UserError(Exception):
    """Something the user can mend. The message is one sentence: which file, what is wrong, what to do.

    The command line prints it and exits with code 2 (see :mod:`llmreg.commands.shell`).
    """
