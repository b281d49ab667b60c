"""A folder that images are written to: its images as they come."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path, PurePath
from queue import Empty, SimpleQueue

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from data.folders import IMAGE_SUFFIXES, entries_below, is_visible_folder

POLL_SECONDS = 0.03  # between two checks of the files that wait
LISTING_SHARE = 0.05  # largest share of the time spent on listing the folder
LISTING_CHUNK = 500  # entries listed at a time, so that a new image does not wait for a listing of 300,000 old ones


class Arrivals(FileSystemEventHandler):
    """Paths of files that the file system has reported as changed."""

    def __init__(self):
        self.queue: SimpleQueue[str] = SimpleQueue()

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Note a path that was written or moved to; opening and reading do not matter."""
        if event.event_type in ("created", "modified", "moved", "closed") and not event.is_directory:
            self.queue.put(os.fsdecode(event.dest_path or event.src_path))


class WatchedFolder:
    """The images of a folder, at any depth, as they come.

    They are reported by the file system, and found by listing the folder from time to time, since changes by other
    machines on a network drive are not reported.

    exclude: patterns (as of a shell) of the images to leave out: their paths within the folder, or folders of theirs.
    """

    def __init__(self, folder: Path, exclude: Sequence[str] = ()):
        self.folder, self.exclude, self._arrivals = folder, exclude, Arrivals()
        self._observer: BaseObserver | None = None
        self._listing: Iterator[str] | None = None
        self._next_listing, self._taken, self._is_listed, self._is_gone = 0.0, 0.0, False, False

    def new(self, lists: bool = True) -> Iterator[str]:
        """Paths that may be new; existing files come first. A missing folder is reported once, and waited for.

        lists: also continue the listing of the folder.
        """
        try:
            is_there = self.folder.is_dir()
        except OSError:  # a network drive that does not answer, or permission lost
            is_there = False
        if not is_there:
            if not self._is_gone:
                print(f"{self.folder}: no longer exists; waiting for it", flush=True)
            self._is_gone = True
            self.stop()
            return
        if self._is_gone:
            print(f"{self.folder}: exists again", flush=True)
            self._is_gone, self._is_listed, self._listing, self._next_listing = False, False, None, 0.0
        if not self._is_listed:
            self._observer = self._observer or self._start()
        if self._is_listed:
            with suppress(Empty):
                while True:
                    path = self._arrivals.queue.get_nowait()
                    if self._is_wanted(path):
                        yield path
        if lists and time.monotonic() >= self._next_listing:
            yield from self._list_some()

    def _is_wanted(self, path: str) -> bool:
        inside = os.path.relpath(path, self.folder)
        parts = PurePath(inside).parts
        prefixes = ("/".join(parts[:count]) for count in range(1, len(parts) + 1))
        return is_image(inside) and not any(fnmatch(prefix, pattern) for prefix in prefixes for pattern in self.exclude)

    def _list_some(self) -> Iterator[str]:
        """The next chunk of the listing."""
        start = time.monotonic()
        self._listing = self._listing or (entry.path for entry in entries_below(self.folder, skips_errors=True))
        found = list(islice(self._listing, LISTING_CHUNK))
        yield from filter(self._is_wanted, found)
        self._taken += time.monotonic() - start
        if len(found) < LISTING_CHUNK:  # the end of the listing
            self._next_listing = time.monotonic() + max(self._taken / LISTING_SHARE, POLL_SECONDS)
            self._listing, self._taken, self._is_listed = None, 0.0, True

    def _start(self) -> BaseObserver | None:
        observer = Observer()
        try:
            observer.schedule(self._arrivals, str(self.folder), recursive=True)
            observer.start()
        except OSError:  # too many watches, or a file system without them: listing alone finds all files
            return None
        return observer

    def stop(self) -> None:
        """Stop the reports of the file system."""
        if self._observer:
            self._observer.stop()
        self._observer = None


def is_image(path: str) -> bool:
    """Whether a path within the folder is that of a visible image."""
    *folders, name = path.split(os.sep)
    is_visible = not name.startswith(".") and all(map(is_visible_folder, folders))
    return is_visible and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
