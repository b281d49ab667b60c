"""Programs run in the process of the tests: the start of one of their own takes three seconds."""

import importlib
import io
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from config_file import load_config
from engine import train
from runtime import cli


def run_here(name: str, *arguments: object) -> str:
    """What a program prints on standard output with these arguments; it must end with 0."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), pytest.raises(SystemExit) as exit_:
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        cli.run(importlib.import_module(name).main)
    assert exit_.value.code == 0
    return out.getvalue()


def train_here(settings: Path, resume: str | None, dies_with_parent: bool) -> None:
    """In place of train_all's process for each category, which test_train_all.py starts."""
    own = load_config(settings, [f"train.resume={resume}"] if resume else [])
    train.run(own, settings.read_text(encoding="utf-8"))
