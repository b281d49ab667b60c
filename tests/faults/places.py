"""Every place of the program that changes a file: counted, and at a chosen one the process is killed or fails.

Calls of the file system are replaced for the process, which should be a fork. SQLite, which keeps the record of the
watch, writes below Python: its places are the statements and the commits.
"""

import builtins
import io
import os
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PLUMBING = {"files.py", "csv_file.py", "image_io.py"}  # what calls these is the place
KILL = 0
IS_WHOLE = os.environ.get("FAULTS") == "all"  # make faults


class Fault(NamedTuple):
    """What happens: at a place, when it is reached for the `count`-th time.

    error: an errno, or KILL. lasts: whether all places that are reached later fail too.
    """

    place: str
    count: int
    error: int
    lasts: bool = False


class Places:
    """Counts the places of this process below a folder, and makes the fault happen. install() cannot be undone."""

    def __init__(self, below: Path, fault: Fault | None = None):
        self._below, self._fault = f"{os.path.realpath(below)}/", fault
        self._fails = False
        self.counts: Counter[str] = Counter()
        self.failed: list[str] = []  # paths below the folder, of the calls that failed

    def _in_folder(self, path: Any) -> str:
        """The absolute path of a file below the folder; empty for others, and for descriptors."""
        if isinstance(path, int):
            return ""
        absolute = os.path.join(os.getcwd(), os.fsdecode(path))
        return absolute if absolute.startswith(self._below) else ""

    def _reach(self, kind: str, path: str) -> bool:
        """Count a place of the fault's kind; an OSError where it is the fault. Whether to kill the process there.

        path: absolute, below the folder.
        """
        if self._fault and not self._fails and not self._fault.place.startswith(kind):
            return False  # finding the caller of each of thousands of writes takes a tenth of the run
        place = f"{kind} in {_caller()}"
        self.counts[place] += 1
        if self._fault is None or not (self._fails or (place, self.counts[place]) == self._fault[:2]):
            return False
        if self._fault.error == KILL:
            return True
        self._fails = self._fault.lasts
        self.failed.append(path.removeprefix(self._below))
        raise OSError(self._fault.error, os.strerror(self._fault.error), path)

    def reach(self, kind: str, path: Any) -> None:
        """Count a place; there the process is killed, or an OSError raised, where that is the fault."""
        if (inside := self._in_folder(path)) and self._reach(kind, inside):
            os.kill(os.getpid(), signal.SIGKILL)

    def _checked(self, kind: str, function: Callable, place_of: int) -> Callable:
        def call(*arguments: Any, **named: Any) -> Any:
            if len(arguments) > place_of:
                self.reach(kind, arguments[place_of])
            return function(*arguments, **named)

        return call

    def install(self) -> None:
        """Replace the functions of Python that change files."""
        for kind, names, place_of in (
            ("replace", ("replace", "rename"), 1),
            ("link", ("link", "symlink"), 1),
            ("unlink", ("unlink", "remove"), 0),
            ("mkdir", ("mkdir",), 0),
        ):
            for name in names:
                setattr(os, name, self._checked(kind, getattr(os, name), place_of))
        plain_open, places = builtins.open, self

        def opened(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
            if not set(mode) & set("wax+") or not (path := places._in_folder(file)):
                return plain_open(file, mode, *arguments, **named)
            places.reach("open", path)
            return _Written(plain_open(file, mode, *arguments, **named), places, path)

        builtins.open = io.open = opened  # type: ignore[assignment]
        fsync, connect = os.fsync, sqlite3.connect

        def synced(file: Any) -> None:
            places.reach("fsync", os.readlink(f"/proc/self/fd/{file if isinstance(file, int) else file.fileno()}"))
            fsync(file)

        os.fsync = synced
        sqlite3.connect = lambda path, **named: connect(path, **named, factory=_connection_class(places, path))

    def written(self, path: str, stream: Any, data: Any) -> None:
        """Called before data are written: a kill leaves half of them in the file."""
        if self._reach("write", path):
            stream.write(data[: len(data) // 2])
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)


class _Written:
    """A file that is open for writing."""

    def __init__(self, stream: Any, places: Places, path: str):
        self._stream, self._places, self._path = stream, places, path

    def write(self, data: Any) -> int:
        self._places.written(self._path, self._stream, data)
        return self._stream.write(data)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> "_Written":
        self._stream.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._stream.__exit__(*error)

    def __iter__(self) -> Any:
        return iter(self._stream)


def _connection_class(places: Places, path: Any) -> type[sqlite3.Connection]:
    """Connections whose statements that write, and whose commits, are places."""

    def reach(kind: str) -> None:
        try:
            places.reach(kind, path)
        except OSError as error:
            raise sqlite3.OperationalError(error.strerror) from None

    class Connection(sqlite3.Connection):
        def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
            if not statement.startswith(("SELECT", "PRAGMA")):
                reach("statement")
            return super().execute(statement, *arguments)

        def commit(self) -> None:
            reach("commit")
            super().commit()

        def __exit__(self, *error: Any) -> Any:
            if error[0] is None:
                try:
                    reach("commit")
                except sqlite3.OperationalError:
                    self.rollback()
                    raise
            return super().__exit__(*error)

    return Connection


def _caller() -> str:
    """The innermost line of the project that is not plumbing: file, function and line."""
    frame = sys._getframe(1)
    found = "elsewhere"
    while frame is not None:
        if path := _path_in_project(frame.f_code):
            found = f"{path}:{frame.f_lineno} ({frame.f_code.co_name})"
            if path.name not in PLUMBING:
                return found
        frame = frame.f_back  # type: ignore[assignment]
    return found


@cache
def _path_in_project(code: CodeType) -> Path | None:
    """The file of a function below the project's folder; None for tests and libraries."""
    path = Path(code.co_filename)
    if ROOT in path.parents and "tests" not in path.parts and ".venv" not in path.parts:
        return path.relative_to(ROOT)
    return None
