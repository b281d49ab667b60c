"""What tests assert about messages: exit status, names and facts, a fix; never sentences, which may be reworded."""

import re
from contextlib import contextmanager, suppress

import pytest

from runtime.errors import UserError


def assert_names(text: str, *names: object) -> None:
    """Each of the names stands in the text as a whole: file names, keys, values, flags; never words of a sentence.

    A number is looked for outside of paths, whose folders can have numbers too; a compiled pattern is searched for.
    """
    for name in names:
        if isinstance(name, re.Pattern):
            assert name.search(text), f"{name.pattern} is not in: {text}"
            continue
        where = re.sub(r"\S*/\S*", " ", text) if isinstance(name, int) else text
        name = str(name)
        before, after = (r"(?<!\w)" if name[0].isalnum() else ""), (r"(?!\w)" if name[-1].isalnum() else "")
        assert re.search(f"{before}{re.escape(name)}{after}", where), f"{name!r} is not named in: {text}"


def assert_fix(text: str) -> None:
    """A message about a user's mistake offers a fix: two words or more after a semicolon, or where --help stands."""
    has_fix = re.search(r"; \S+ \S+|\nsee: python \S+\.py --help$", text)
    assert has_fix, f"no fix is offered: {text}"


def error_of(outcome: tuple[int, str, str], status: int) -> str:
    """The message that a program ended with, without progress bars; it has this exit status and no traceback."""
    found, _, error = outcome
    lines = [line for line in error.splitlines() if line.strip() and "|" not in line]
    assert found == status and "Traceback" not in error, error
    assert lines and lines[0].startswith("error: "), error
    return "\n".join(lines)


def assert_user_error(outcome: tuple[int, str, str], *names: object) -> None:
    """A program ended with a user error: exit status 2, no traceback, at most two lines that name `names` and a fix."""
    text = error_of(outcome, status=2)
    assert len(text.splitlines()) <= 2, text
    assert_names(text, *names)
    assert_fix(text)


@contextmanager
def raises_user_error(*names: object):
    """Within the block a UserError is raised that names `names` and offers a fix."""
    with pytest.raises(UserError) as caught:
        yield caught
    assert_names(str(caught.value), *names)
    assert_fix(str(caught.value))


def lines_with(text: str, *facts: object) -> list[str]:
    """The lines in which all of these facts stand: numbers, names, paths; each as a whole."""
    found = []
    for line in text.splitlines():
        with suppress(AssertionError):
            assert_names(line, *facts)
            found.append(line)
    return found


def assert_line(text: str, *facts: object) -> str:
    """A line in which all of these facts stand."""
    found = lines_with(text, *facts)
    assert found, f"no line with {facts} in:\n{text}"
    return found[0]
