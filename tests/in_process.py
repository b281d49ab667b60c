"""Programs run in the process of the tests: the start of one of their own takes three seconds."""

import importlib
import io
import sys
from contextlib import redirect_stdout

import pytest

from runtime import cli


def run_here(name: str, *arguments: object) -> str:
    """What a program prints on standard output with these arguments; it must end with 0."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), pytest.raises(SystemExit) as exit_:
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        cli.run(importlib.import_module(name).main)
    assert exit_.value.code == 0
    return out.getvalue()
