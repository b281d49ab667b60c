"""The watch mode: inference on images as they come into a folder."""

import os
import sqlite3
import time
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

from config import Config
from data.folder_watch import POLL_SECONDS, WatchedFolder
from data.folders import NOT_UTF8, RENAME, as_utf8
from engine.predict import default_folder, made_with, notes_of, title_of
from inference.detector import Detector
from reporting.predictions import Predictions, row, row_of_error
from runtime.errors import UserError, format_error
from runtime.signals import Interrupted

SETTLE_SECONDS = 0.15  # a file that has not changed for this long counts as completely written
RETRY_SECONDS = 5.0  # a file that cannot be read is tried again for this long: its writer may have paused
MOST_WAITING = 1000  # waiting images at which listing pauses
DONE_FILE = "done.sqlite"


class State(NamedTuple):
    """The state of a file, which changes when it is written."""

    size: int
    time: int  # nanoseconds


class Done:
    """The record of processed files, on disk, so that memory does not grow.

    Apart from predictions.csv, which users may rotate or delete.
    """

    def __init__(self, path: Path):
        self._base = sqlite3.connect(path)
        self._base.execute("CREATE TABLE IF NOT EXISTS done (path TEXT PRIMARY KEY, size INTEGER, time INTEGER)")
        self._base.commit()

    def __contains__(self, item: tuple[str, State]) -> bool:
        found = self._base.execute("SELECT size, time FROM done WHERE path = ?", item[:1]).fetchone()
        return found == item[1]

    def knows(self, path: str) -> bool:
        """Whether any state of a file has been processed."""
        return self._base.execute("SELECT 1 FROM done WHERE path = ?", (path,)).fetchone() is not None

    def add(self, path: str, state: State) -> None:
        self._base.execute("INSERT OR REPLACE INTO done VALUES (?, ?, ?)", (path, *state))
        self._base.commit()

    def close(self) -> None:
        self._base.close()


def run(config: Config, folder: Path, output: Path | None = None) -> Path:
    """Run inference on the images of a folder, and on new ones, until interrupted.

    Args:
        output: folder to write to, None for the default one.

    Returns:
        the folder of predictions.

    Raises:
        UserError: no folder, no checkpoint, settings that contradict it, or predictions of another checkpoint.
    """
    if not folder.is_dir():
        raise UserError(f"--watch {folder}", "not a folder", "name the folder that images are written to")
    detector = Detector.for_new_images(config)
    for line in notes_of(detector):
        print(line)
    written = output or default_folder(detector, [folder])
    if written.resolve().is_relative_to(folder.resolve()):
        raise UserError(written, "lies in the folder that is watched", "name another with --output")
    wanted = detector.config.metrics.visualisation
    predictions = Predictions(written, detector.thresholds, made_with(detector, [folder]), wanted, "keep")
    counts: Counter[str] = Counter()
    source = WatchedFolder(folder)
    try:
        with closing(Done(written / DONE_FILE)) as done:
            _catch_up(predictions, done)
            print(f"watching {folder}, writing to {written}; Ctrl-C ends it", flush=True)
            _watch(source, detector, predictions, done, counts)
    except Interrupted:
        print(", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())) or "no image arrived")
        predictions.write_report(title_of(detector, folder), partial(_label, folder), detector.all_thresholds)
    finally:
        source.stop()
    return written


def _catch_up(predictions: Predictions, done: Done) -> None:
    """Record the images of the last rows as done.

    The process may have been killed after it wrote a row and before it recorded it.
    """
    for path, *_ in predictions.last_rows():
        if not done.knows(path) and (state := state_of(path)):
            done.add(path, state)


def _label(folder: Path, path: str) -> str:
    """An image's path within the folder, which its map and panel have too."""
    return Path(os.path.relpath(path, folder)).as_posix()


def state_of(path: str) -> State | None:
    """The state of a file, None where there is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return State(found.st_size, found.st_mtime_ns)


def _watch(
    source: WatchedFolder, detector: Detector, predictions: Predictions, done: Done, counts: Counter[str]
) -> None:
    waiting: dict[str, tuple[State, float, float]] = {}  # path -> state, time of its last change, time of the first
    while True:
        now = time.monotonic()
        for path in source.new(lists=len(waiting) < MOST_WAITING):
            state = state_of(path)
            if path not in waiting and state and (as_utf8(path), state) not in done:
                waiting[path] = state, now, now
        for path, (state, since, first) in list(waiting.items()):
            current = state_of(path)
            if current is None:
                del waiting[path]
            elif current != state:
                waiting[path] = current, now, now
            elif now - since >= SETTLE_SECONDS:
                if line := _infer(path, source.folder, detector, predictions, is_last=now - first >= RETRY_SECONDS):
                    done.add(as_utf8(path), state)
                    counts[line.split()[0]] += 1
                    print(line, flush=True)
                    del waiting[path]
                else:
                    waiting[path] = state, now, first
        time.sleep(POLL_SECONDS)


def _infer(path: str, folder: Path, detector: Detector, predictions: Predictions, is_last: bool) -> str | None:
    """Run inference on an image and write its results; the line to print, None where it has to be tried again."""
    start = time.perf_counter()
    if as_utf8(path) != path:
        error = str(UserError(as_utf8(path), NOT_UTF8, RENAME))
        predictions.write([row_of_error(as_utf8(path), error)])
        return f"failed {error}"
    try:
        [found] = detector.run([detector.read(Path(path))])
    except (UserError, OSError) as error:
        if not is_last:
            return None
        predictions.write([row_of_error(path, format_error(error))])
        return f"failed {format_error(error)}"
    predictions.draw(_label(folder, path), found, predictions.wants_panel(found))
    seconds = time.perf_counter() - start
    predictions.write([row(path, found, detector.thresholds, seconds)])
    return f"{found.verdict or 'scored'} {found.score:.4f} {path} {1000 * seconds:.0f} ms"
