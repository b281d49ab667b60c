"""The record of a watch: which files are done, and which rows are not written yet."""

import hashlib
import json
import os
import sqlite3
import stat
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from reporting.predictions import COLUMNS, Predictions
from runtime import signals
from runtime.errors import FIX_STORAGE, UserError
from runtime.files import short_hash
from runtime.json_file import parse_json
from runtime.provenance import signed

RECORD_FILE = "record.sqlite"
CAUGHT_UP = 1  # user_version of a record that has all images of predictions.csv
ROWS_AT_ONCE = 100  # fewer than `Predictions.last_rows` has


class State(NamedTuple):
    """The state of a file, which changes when it is written. file: its number, which stays when it is moved."""

    size: int
    time: int  # nanoseconds
    file: int


def state_of(path: str) -> State | None:
    """The state of a file, None where there is no file, or something else such as a pipe."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return State(found.st_size, signed(found.st_mtime_ns), signed(found.st_ino))


class Record:
    """What has been processed, and rows that predictions.csv does not have yet; on disk, so that memory stays flat.

    It is apart from predictions.csv, which users may rotate, delete, or open in a program that locks it. A file is
    known by its path within the folder, and when it was moved, by its number.

    Raises:
        UserError: there is no place to write it to.
    """

    def __init__(self, path: Path, folder: Path):
        self._path, self._folder = path, folder
        self._written = 0  # number of the last row that predictions.csv has, though it still waits here
        try:
            self._base = self._open()
        except sqlite3.OperationalError as error:
            raise UserError(path, error, FIX_STORAGE) from error
        except sqlite3.DatabaseError as error:
            aside = path.with_name(f"{path.name}.{short_hash(str(time.time_ns()))}.damaged")
            print(f"{path}: damaged ({error}); kept as {aside.name}; images that predictions.csv has are done")
            os.replace(path, aside)
            path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
            self._base = self._open()

    def _open(self) -> sqlite3.Connection:
        base = sqlite3.connect(self._path)
        base.execute(
            "CREATE TABLE IF NOT EXISTS done (path TEXT PRIMARY KEY, size INTEGER, time INTEGER, file INTEGER, "
            "again INTEGER, digest TEXT)"
        )
        base.execute("CREATE TABLE IF NOT EXISTS waiting (number INTEGER PRIMARY KEY, cells TEXT)")
        base.commit()
        names = [name for _, name, *_ in base.execute("PRAGMA table_info(done)")]
        is_sound = base.execute("PRAGMA quick_check").fetchone() == ("ok",)
        is_ours = names == ["path", *State._fields, "again", "digest"]
        others = base.execute("SELECT name FROM sqlite_master WHERE type IN ('view', 'trigger')").fetchall()
        if not is_sound or not is_ours or others or not all(map(_is_row, base.execute("SELECT cells FROM waiting"))):
            base.close()
            raise sqlite3.DatabaseError("its check fails")
        base.execute("CREATE INDEX IF NOT EXISTS moved ON done (file, size, time)")
        base.commit()
        return base

    def is_done(self, path: str, state: State) -> bool:
        """Whether a file has been processed in this state, here or at another path that it was moved from."""
        found = self._base.execute("SELECT size, time, again FROM done WHERE path = ?", (path,)).fetchone()
        if found and found[:2] == state[:2]:
            return not found[2]
        if not state.file:
            return False
        same = "SELECT path, digest FROM done WHERE file = ? AND size = ? AND time = ? AND again = 0 AND path != ?"
        before = self._base.execute(same, (state.file, state.size, state.time, path)).fetchall()
        gone = {digest for old, digest in before if not (self._folder / str(old)).exists()}
        return bool(gone) and digest_of(self._folder / path) in gone  # file numbers are used again

    def is_reported(self, path: str, state: State) -> bool:
        """Whether a file has failed in this state and is to be tried again."""
        found = self._base.execute("SELECT size, time, again FROM done WHERE path = ?", (path,)).fetchone()
        return found is not None and found == (*state[:2], 1)

    def add(
        self, path: str, state: State, cells: list[Any] | None, again: bool = False, digest: str | None = None
    ) -> None:
        """Record a file and its row. again: it failed and is tried again. digest: see `digest_of`."""
        self._restore()
        with self._base:
            self._base.execute("INSERT OR REPLACE INTO done VALUES (?, ?, ?, ?, ?, ?)", (path, *state, again, digest))
            if cells is not None:
                self._base.execute("INSERT INTO waiting (cells) VALUES (?)", (json.dumps(list(map(str, cells))),))

    def _restore(self) -> None:
        """Write the record again where its file was removed."""
        if self._path.exists():
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._open()
        self._base.backup(new)
        self._base.close()
        self._base = new

    def write_rows(self, predictions: Predictions) -> None:
        """Move the waiting rows to predictions.csv."""
        some = f"SELECT number, cells FROM waiting ORDER BY number LIMIT {ROWS_AT_ONCE}"
        while found := self._base.execute(some).fetchall():
            failure: Exception | None = None
            with signals.deferred():  # a signal between the two would write these rows twice
                try:
                    self._move(found, predictions)
                except (OSError, sqlite3.Error) as error:
                    failure = error
            if failure:  # raised outside, as the caller goes on after it: a signal must not be lost with it
                raise failure

    def _move(self, found: list[tuple[int, str]], predictions: Predictions) -> None:
        """Write these rows, and forget them. Where only the latter failed before, they are not written again."""
        if new := [json.loads(cells) for number, cells in found if number > self._written]:
            # Durable, as the record is: otherwise a loss of power could leave a row in neither.
            predictions.write(new, durable=True)
        self._written = found[-1][0]
        self._forget(self._written)
        self._written = 0  # SQLite gives numbers again once the table is empty

    def catch_up(self, predictions: Predictions) -> None:
        """Settle what a killed process, or a record that was removed, has left: rows that are written are not waiting.

        Without a record, images that predictions.csv has are done, also where one was moved and has kept its name. A
        file that is newer than the rows is another image: a second row does less harm than an image without one.
        """
        written = predictions.last_rows()
        for number, cells in self._base.execute("SELECT number, cells FROM waiting ORDER BY number").fetchall():
            if json.loads(cells) in written:
                self._forget(number)
        if self._base.execute("PRAGMA user_version").fetchone() == (CAUGHT_UP,):
            return
        moved: Counter[str] = Counter()
        written_at = max((file.stat().st_mtime_ns for file in predictions.folder.glob("predictions*.csv")), default=0)
        for one in predictions.rows("predictions*.csv"):
            path = label_of(self._folder, one["path"])
            state = state_of(str(self._folder / path))
            if state is None:
                moved[Path(path).name] += 1
            elif state.time <= written_at:
                self.add(path, state, None)
        for file in self._folder.rglob("*") if moved else ():
            state, path = state_of(str(file)), label_of(self._folder, str(file))
            is_known = moved[file.name] == 1 and state is not None and state.time <= written_at
            if state and is_known and not self.is_done(path, state):
                self.add(path, state, None)
        self._base.execute(f"PRAGMA user_version = {CAUGHT_UP}")  # at the end: a kill before leaves a record to settle

    def _forget(self, number: int) -> None:
        with self._base:
            self._base.execute("DELETE FROM waiting WHERE number <= ?", (number,))

    def close(self) -> None:
        self._base.close()


def _is_row(values: tuple) -> bool:
    """Whether a waiting row is a list of texts, as `Record.add` writes it."""
    try:
        cells = parse_json(values[0])
    except (TypeError, ValueError):
        return False
    return isinstance(cells, list) and len(cells) == len(COLUMNS) and all(isinstance(cell, str) for cell in cells)


def digest_of(path: Path) -> str | None:
    """Digest of a file's content; None where it cannot be read."""
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    except OSError:
        return None


def label_of(folder: Path, path: str) -> str:
    """An image's path within the folder, which its map and panel have too."""
    return Path(os.path.relpath(path, folder)).as_posix()
