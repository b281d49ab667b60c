"""Names in Unicode: the same letters can be composed (NFC) or decomposed (NFD, as macOS writes them)."""

import os
import unicodedata
from contextlib import suppress
from pathlib import Path


def composed(name: str) -> str:
    """A name in composed form, in which all names are compared and new files are called."""
    return unicodedata.normalize("NFC", name)


def as_on_disk(path: str) -> str:
    """A path in the form in which its folders and its file are on the disk, as far as they are there."""
    if path.isascii() or os.path.exists(path):
        return path
    found = Path()
    for part in Path(path).parts:
        if not (found / part).exists():
            with suppress(OSError):  # a folder that does not exist, or cannot be read
                part = next((name for name in os.listdir(found) if composed(name) == composed(part)), part)
        found /= part
    return found.as_posix()
