"""The one exception for mistakes that a user can mend, and how a failure is told that does not end the program."""

import traceback


class UserError(Exception):
    """A mistake in settings, data or files: one or two lines that name the file or key and the mend (exit status 2)."""


class LostError(Exception):
    """Another process of a training on several is no more (exit status 1)."""


def told(error: Exception) -> str:
    """One line about a failure in a batch; a fault of the program shows its traceback besides."""
    if isinstance(error, (UserError, OSError)):
        return " ".join(str(error).split())
    traceback.print_exception(error)
    return " ".join(f"{type(error).__name__}: {error}".split())
