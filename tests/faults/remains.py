"""What a run leaves in a folder: the files that readers see, whether they are whole, and their values."""

import csv
import hashlib
import io
import json
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import yaml

from inference import checkpoint

TIMES = {"seconds", "samples_per_second", "time", "checkpoint_state"}  # keys; the last is of a file that is copied

RANDOM = re.compile(r"(?<=[._/])[a-z0-9_]{8}(?=[./]|$)")  # in names of temporary files


def visible_files(folder: Path) -> Iterator[Path]:
    """Files that a reader sees: no part of their path below the folder begins with a dot."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def _rows_are_whole(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.name == "predictions.csv":  # rows are appended: the last may be half there, and the next run cuts it off
        text = text[: text.rfind("\n") + 1]
    assert text.endswith("\n"), "the last line is not whole"
    rows = list(csv.reader(io.StringIO(text)))
    assert len({len(row) for row in rows}) == 1, "rows of several lengths"


def _image_is_whole(path: Path) -> None:
    assert cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED) is not None, "no image"


def _database_is_whole(path: Path) -> None:
    with closing(sqlite3.connect(path)) as base:
        assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)


WHOLE: dict[str, Callable[[Path], object]] = {
    ".pt": lambda path: _weights(path.read_bytes()),
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    ".csv": _rows_are_whole,
    ".png": _image_is_whole,
    ".npz": lambda path: [np.load(path)[key] for key in np.load(path)],
    ".html": lambda path: _ends_with(path, "</html>"),
    ".sqlite": _database_is_whole,
    ".xml": ElementTree.parse,
    ".yaml": lambda path: yaml.safe_load(path.read_text(encoding="utf-8")),
}


@cache
def _weights(data: bytes) -> str:
    """Digest of the weights in a checkpoint; a UserError if it is not whole. Cached: reading one takes 0.1 s."""
    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        file.write(data)
        file.flush()
        state = checkpoint.read(Path(file.name))["model"]
    return hashlib.sha256(b"".join(state[key].numpy().tobytes() for key in sorted(state))).hexdigest()


def _ends_with(path: Path, end: str) -> None:
    assert path.read_text(encoding="utf-8").rstrip().endswith(end), f"does not end with {end}"


def broken_files(folder: Path) -> list[str]:
    """Files that are not whole, each with the reason."""
    found = []
    for path in visible_files(folder):
        try:
            WHOLE.get(path.suffix, lambda path: None)(path)
            if path.suffix in (".txt", ".yaml", ".md") and path.stat().st_size == 0:
                raise ValueError("is empty")
        except Exception as error:  # whatever a reader raises
            found.append(f"{path.relative_to(folder)}: {type(error).__name__}: {error}")
    return found


def _is_compared(path: Path, folder: Path) -> bool:
    """Whether a visible file has the same values after each run, and is neither an image nor a texture given."""
    name = path.relative_to(folder).as_posix()
    varies = "/logs/" in name or path.suffix in (".html", ".txt", ".md", ".sqlite")
    return not varies and not name.startswith(("mvtec/", "textures/"))


def state_of(folder: Path) -> dict[str, object]:
    """All that the next run finds: values as of content_of(), and what other files hold, hidden ones among them.

    Of files that hold times (logs, reports, tables of times), only the size; of a lock's owner, and of the text of an
    error in a row, nothing but that it is there.
    """
    found = {key: bool(value) if key.endswith(" error") else value for key, value in content_of(folder).items()}
    visible = set(visible_files(folder))
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or (path in visible and _is_compared(path, folder)):
            continue
        name = RANDOM.sub("*", path.relative_to(folder).as_posix())
        if path.name == ".owner.json":
            found[name] = True
        elif "/logs/" in name or path.name.endswith((".html", "_times.txt")):
            found[name.partition("tfevents")[0]] = path.stat().st_size
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def content_of(folder: Path) -> dict[str, object]:
    """What a run leaves, value by value: weights, images, each value of a JSON and each cell of a CSV file."""
    found: dict[str, object] = {}
    for path in visible_files(folder):
        if not _is_compared(path, folder):
            continue
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".pt":
            found[name] = _weights(path.read_bytes())
        elif path.suffix == ".json":
            found |= _values(json.loads(path.read_text(encoding="utf-8")), name)
        elif path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as stream:
                rows = list(csv.DictReader(stream))
            # An image that failed has a row with its error; the next run adds the one that counts.
            found |= _values({row.get("path") or str(number): row for number, row in enumerate(rows)}, name)
            found[f"{name}, rows without an error"] = sum(not row.get("error") for row in rows)
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _values(value: object, name: str) -> dict[str, object]:
    if isinstance(value, dict | list):
        parts = [one for one in value.items() if one[0] not in TIMES] if isinstance(value, dict) else enumerate(value)
        return {key: one for part, below in parts for key, one in _values(below, f"{name} {part}").items()}
    return {name: value}
