"""The watch mode: judges pictures as they come into a folder."""

import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from config import Config
from data.folders import IMAGE_SUFFIXES, NOT_UTF8, RENAME, as_utf8, entries_below, is_visible_folder
from engine.predict import made_with, notes_of, title_of, usual_folder
from inference import checkpoint
from inference.detector import Detector
from reporting.predictions import Predictions, row, row_of_error
from runtime.errors import UserError, format_error
from runtime.signals import Interrupted

SETTLE_SECONDS = 0.15  # seconds that a picture must not have changed for: then it is written completely
RETRY_SECONDS = 5.0  # seconds that one which cannot be read is tried again for: its writer may have paused
POLL_SECONDS = 0.03  # seconds between two looks at what is about to come
LISTING_SHARE = 0.05  # of the time that listing the folder may take
LISTING_CHUNK = 500  # entries listed in one go: 300,000 pictures of a month must not make a new one wait
MOST_WAITING = 1000  # pictures found by listing that wait to be judged
DONE_FILE = "done.sqlite"


class State(NamedTuple):
    """What tells one version of a file from another."""

    size: int
    time: int  # nanoseconds


class Done:
    """What has been judged, on the disk: memory does not grow with it."""

    def __init__(self, path: Path):
        self._base = sqlite3.connect(path)
        self._base.execute("CREATE TABLE IF NOT EXISTS done (path TEXT PRIMARY KEY, size INTEGER, time INTEGER)")
        self._base.commit()

    def __contains__(self, item: tuple[str, State]) -> bool:
        found = self._base.execute("SELECT size, time FROM done WHERE path = ?", item[:1]).fetchone()
        return found == item[1]

    def knows(self, path: str) -> bool:
        """Whether any version of a file has been judged."""
        return self._base.execute("SELECT 1 FROM done WHERE path = ?", (path,)).fetchone() is not None

    def add(self, path: str, state: State) -> None:
        self._base.execute("INSERT OR REPLACE INTO done VALUES (?, ?, ?)", (path, *state))
        self._base.commit()

    def close(self) -> None:
        self._base.close()


class Arrivals(FileSystemEventHandler):
    """Paths of pictures that the system has told about."""

    def __init__(self):
        self.queue: SimpleQueue[str] = SimpleQueue()

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Note where something was written, or moved to; opening and reading are of no interest."""
        if event.event_type in ("created", "modified", "moved", "closed") and not event.is_directory:
            self.queue.put(os.fsdecode(event.dest_path or event.src_path))


class Folder:
    """Pictures of a folder, at any depth, as they come: told by the system, and found by listing now and then, since
    what others write to a network drive is not told."""

    def __init__(self, folder: Path):
        self.folder, self._arrivals, self._observer = folder, Arrivals(), None
        self._listing: Iterator[str] | None = None
        self._next_listing, self._taken, self._is_listed, self._is_gone = 0.0, 0.0, False, False

    def new(self, lists: bool = True) -> Iterator[str]:
        """Paths that may be new; those that were there before come first. A folder that has vanished is waited for, and
        said once.

        lists: go on with listing the folder, besides what the system has told.
        """
        if not self.folder.is_dir():
            if not self._is_gone:
                print(f"{self.folder}: gone; waiting for it to come back", flush=True)
            self._is_gone = True
            self.stop()
            return
        if self._is_gone:
            print(f"{self.folder}: back", flush=True)
            self._is_gone, self._listing, self._next_listing = False, None, 0.0
        self._observer = self._observer or self._start()
        if self._is_listed:
            with suppress(Empty):
                while True:
                    path = self._arrivals.queue.get_nowait()
                    if is_image(os.path.relpath(path, self.folder)):
                        yield path
        if lists and time.monotonic() >= self._next_listing:
            yield from self._list_some()

    def _list_some(self) -> Iterator[str]:
        """The next entries of the listing."""
        start = time.monotonic()
        self._listing = self._listing or (entry.path for entry in entries_below(self.folder, skips_errors=True))
        found = list(islice(self._listing, LISTING_CHUNK))
        yield from (path for path in found if is_image(os.path.basename(path)))
        self._taken += time.monotonic() - start
        if len(found) < LISTING_CHUNK:  # its end
            self._next_listing = time.monotonic() + max(self._taken / LISTING_SHARE, POLL_SECONDS)
            self._listing, self._taken, self._is_listed = None, 0.0, True

    def _start(self) -> BaseObserver | None:
        observer = Observer()
        try:
            observer.schedule(self._arrivals, str(self.folder), recursive=True)
            observer.start()
        except OSError:  # too many watches, or a file system that has none: listing finds all as well
            return None
        return observer

    def stop(self) -> None:
        """End what the system tells."""
        if self._observer:
            self._observer.stop()
        self._observer = None


def is_image(path: str) -> bool:
    """Whether a path within the folder is that of a visible picture."""
    *folders, name = path.split(os.sep)
    is_visible = not name.startswith(".") and all(map(is_visible_folder, folders))
    return is_visible and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def run(config: Config, folder: Path, output: Path | None = None) -> Path:
    """Judge the pictures of a folder and those that come, until interrupted or told to stop.

    Args:
        output: folder to write to, None for the usual one.

    Returns:
        the folder of predictions.

    Raises:
        UserError: no folder, no checkpoint, settings that contradict it, predictions of another one.
    """
    if not folder.is_dir():
        raise UserError(f"--watch {folder}", "not a folder", "name the folder that images are written to")
    config, weights = checkpoint.for_new_images(config)
    detector = Detector.of(config, weights)
    for line in notes_of(detector):
        print(line)
    written = output or usual_folder(detector, folder)
    if written.resolve().is_relative_to(folder.resolve()):
        raise UserError(written, "lies in the folder that is watched", "name another with --output")
    predictions = Predictions(written, detector.limits, made_with(detector), config.metrics.visualisation, keep=True)
    counts: Counter[str] = Counter()
    source = Folder(folder)
    try:
        with closing(Done(written / DONE_FILE)) as done:
            _catch_up(predictions, done)
            print(f"watching {folder}, writing to {written}; Ctrl-C ends it", flush=True)
            _watch(source, detector, predictions, done, counts)
    except Interrupted:
        print(", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())) or "no picture came")
        predictions.write_report(title_of(detector, folder), partial(_label, folder), detector.thresholds)
    finally:
        source.stop()
    return written


def _catch_up(predictions: Predictions, done: Done) -> None:
    """A kill can come between a row and the note that it is done."""
    for path in predictions.last_paths():
        if not done.knows(path) and (state := state_of(path)):
            done.add(path, state)


def _label(folder: Path, path: str) -> str:
    """A picture's path within the folder, as its map and panel have it."""
    return Path(os.path.relpath(path, folder)).as_posix()


def state_of(path: str) -> State | None:
    """Of a file, None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return State(found.st_size, found.st_mtime_ns)


def _watch(source: Folder, detector: Detector, predictions: Predictions, done: Done, counts: Counter[str]) -> None:
    waiting: dict[str, tuple[State, float, float]] = {}  # state, since when it is so, since when it is waited for
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
    """Judge a picture and write what is found; the line about it, None where it cannot be read and may be yet."""
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
    predictions.write([row(path, found, detector.limits, seconds)])
    return f"{found.verdict or 'scored'} {found.score:.4f} {path} {1000 * seconds:.0f} ms"
