"""Errors that end a program with a message instead of a traceback, and how a batch reports a failure."""

import traceback
from collections.abc import Sequence

LONGEST_SUBJECT = 600  # characters; paths of 250 are common, those of 4096 mistakes
FIX_FILE = "fix or delete the file"
FIX_STORAGE = "fix that (free space, permission, path) and run again"


class UserError(Exception):
    """A mistake in settings, data or files that the user can fix (exit status 2).

    Attributes:
        subject: the setting (with its value where that helps), flag, file or folder.
        problem: what is wrong with it.
        fix: what to do about it.
    """

    def __init__(self, subject: object, problem: object, fix: str):
        self.subject, self.problem, self.fix = _in_one_line(subject), str(problem), fix
        super().__init__(self.subject, self.problem, self.fix)  # kept when the error is pickled

    def __str__(self) -> str:
        return "; ".join(filter(None, (": ".join(filter(None, (self.subject, self.problem))), self.fix)))

    @classmethod
    def from_text(cls, text: str) -> "UserError":
        """The error whose text came from another process; its own text is the same."""
        subject, _, rest = text.partition(": ")
        problem, _, fix = rest.partition("; ")
        return cls(subject, problem, fix)


def _in_one_line(subject: object) -> str:
    """The text without line breaks, which names may have, and of a length that can be read."""
    text = str(subject).replace("\r", "\\r").replace("\n", "\\n")
    return text if len(text) <= LONGEST_SUBJECT else f"{text[:LONGEST_SUBJECT]}..."


class UserErrors(UserError):
    """Several mistakes, each in a line of its own. The fields are those of the first."""

    def __init__(self, errors: Sequence[UserError]):
        self.errors = tuple(errors)
        super().__init__(*errors[0].args)
        self.args = (self.errors,)  # kept when the error is pickled

    def __str__(self) -> str:
        return "\n".join(map(str, self.errors))


class RankLostError(Exception):
    """Another process of a training on several has ended (exit status 1)."""


def format_error(error: Exception) -> str:
    """One line about a failure in a batch. The traceback of a fault of the program goes to standard error."""
    if isinstance(error, (UserError, OSError, MemoryError)):
        return " ".join(str(error).split()) or "out of memory"
    traceback.print_exception(error)
    return " ".join(f"{type(error).__name__}: {error}".split())
