"""The version of this program, which stands in pyproject.toml."""

import re
from functools import cache
from pathlib import Path


@cache
def program_version() -> str:
    """The version, as X.Y.Z; `unknown` where pyproject.toml is missing, as in a copy of the code alone."""
    path = Path(__file__).resolve().parent.parent / "pyproject.toml"
    found = re.search(r'^version = "(.+)"$', path.read_text(encoding="utf-8"), re.MULTILINE) if path.is_file() else None
    return found[1] if found else "unknown"
