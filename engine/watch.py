"""The watch mode: inference on images as they come into a folder."""

import errno
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

import cv2

from config import Config
from data.file_end import has_end
from data.folder_watch import POLL_SECONDS, WatchedFolder
from data.folders import NOT_UTF8, RENAME, as_utf8
from engine.predict import default_folder, error_of, made_with, notes_of, title_of
from engine.watch_record import RECORD_FILE, Record, State, digest_of, label_of, state_of
from inference.detector import Detection, Detector
from reporting.predictions import Predictions, locked, row, row_of_error
from runtime.device import is_device_fault
from runtime.errors import UserError
from runtime.signals import Interrupted

PATIENCE = 30  # quiet times after which a file that is not complete, or cannot be opened, is reported as failed
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 60.0  # seconds between two attempts, which double
MOST_WAITING = 1000  # waiting images at which listing pauses


@dataclass
class Attempts:
    """When to try something again that has failed, and whether that was reported."""

    due: float = 0.0
    pause: float = FIRST_PAUSE
    is_reported: bool = False

    def later(self, now: float) -> None:
        """Set the time of the next attempt."""
        self.due = now + self.pause
        self.pause = min(2 * self.pause, LONGEST_PAUSE)


@dataclass
class WaitingFile:
    """A file that is not processed yet. since: when it was last seen to change."""

    state: State
    since: float
    attempts: Attempts


def check_folder(folder: Path) -> None:
    """UserError if it cannot be watched."""
    if not folder.is_dir():
        raise UserError(f"--watch {folder}", "not a folder", "name the folder that images are written to")


def run(config: Config, folder: Path, output: Path | None = None) -> Path:
    """Run inference on the images of a folder, and on new ones, until interrupted.

    Args:
        output: folder to write to, None for the default one.

    Returns:
        the folder of predictions.

    Raises:
        UserError: no folder, no checkpoint, settings that contradict it, or predictions of another folder.
    """
    check_folder(folder)
    detector = Detector.for_new_images(config)
    for line in notes_of(detector):
        print(line)
    written = output or default_folder(detector, [folder])
    if written.resolve().is_relative_to(folder.resolve()):
        raise UserError(written, "lies in the folder that is watched", "name another with --output")
    with locked(written):
        wanted = detector.config.metrics.visualisation
        predictions = Predictions(written, detector.thresholds, made_with(detector, [folder]), wanted, "keep")
        with closing(Record(written / RECORD_FILE, folder)) as record:
            record.catch_up(predictions)
            watch = Watch(config, WatchedFolder(folder, config.watch.exclude), detector, predictions, record)
            try:
                print(f"watching {folder}, writing to {written}; Ctrl-C ends it", flush=True)
                watch.run()
            except Interrupted as interrupt:
                watch.finish(title_of(detector, folder))
                if interrupt.number == getattr(signal, "SIGHUP", None):
                    raise
            finally:
                watch.source.stop()
    return written


class Watch:
    """Processes the images of a folder as they come."""

    def __init__(
        self, config: Config, source: WatchedFolder, detector: Detector, predictions: Predictions, record: Record
    ):
        self.quiet, self.source, self.detector = config.watch.quiet_seconds, source, detector
        self.predictions, self.record = predictions, record
        self.counts: Counter[str] = Counter()
        self._files: dict[str, WaitingFile] = {}
        self._attempts = {"results": Attempts(), "predictions.csv": Attempts()}

    def run(self) -> None:
        """Process images until interrupted."""
        while True:
            self.step()
            time.sleep(POLL_SECONDS)

    def step(self) -> None:
        """Look for new images, and process those that are complete."""
        now = time.monotonic()
        self._write_rows()
        if self._attempts["results"].due > now:
            return
        new = [one for one in self._files.values() if not one.attempts.is_reported]
        for path in self.source.new(lists=len(new) < MOST_WAITING):
            if path not in self._files and (state := state_of(path)):
                self._take(path, state, now)
        for path, file in list(self._files.items()):
            current = state_of(path)
            if current is None:
                del self._files[path]
            elif current != file.state:
                self._files[path] = WaitingFile(current, now, Attempts())
            elif file.attempts.due <= now and self._attempts["results"].due <= now:
                self._process(path, file)

    def _take(self, path: str, state: State, now: float) -> None:
        """Let an image wait for its inference, unless it is done."""
        label = self._label(path)
        try:
            if not self.record.is_done(label, state):
                self._files[path] = WaitingFile(state, now, Attempts(is_reported=self.record.is_reported(label, state)))
        except sqlite3.Error as error:
            self._cannot_store("results", error)

    def _label(self, path: str) -> str:
        return as_utf8(label_of(self.source.folder, path))

    def _write_rows(self) -> None:
        if self._attempts["predictions.csv"].due <= time.monotonic():
            self._store("predictions.csv", lambda: self.record.write_rows(self.predictions))

    def finish(self, title: str) -> None:
        """Write what is left, and the report, as far as there is a place for them; rows stay in the record."""
        counts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(self.counts.items()))
        print(counts or "no image arrived")
        self._attempts["predictions.csv"].due = 0
        self._write_rows()
        labels = partial(label_of, self.source.folder)
        self._store("results", lambda: self.predictions.write_report(title, labels, self.detector.all_thresholds))

    def _process(self, path: str, file: WaitingFile) -> None:
        """Run inference on an image if it is complete, and write its results."""
        if as_utf8(path) != path:
            self._fail(path, file, str(UserError(as_utf8(path), NOT_UTF8, RENAME)))
            return
        start, waited = time.perf_counter(), time.monotonic() - file.since
        is_patient = waited < PATIENCE * self.quiet
        try:
            end = has_end(Path(path))
            if (end is False and is_patient) or (end is None and waited < self.quiet):
                file.attempts.due = time.monotonic() + POLL_SECONDS
                return
            digest = digest_of(Path(path))
            [found] = self.detector.run([self.detector.read(Path(path))])
        except Exception as error:  # a service goes on with the next image
            if is_device_fault(error):
                raise
            self._failed(path, file, error, is_patient)
            return
        if (state_of(path) or file.state) != file.state:
            return  # it has changed meanwhile: the next step sees that
        try:
            self._finish(path, file, found, time.perf_counter() - start, digest)
        except (UserError, MemoryError, cv2.error) as error:  # its files cannot be written, those of others can
            self._failed(path, file, error, is_patient)

    def _failed(self, path: str, file: WaitingFile, error: Exception, is_patient: bool) -> None:
        """Report an image that has failed, or let it be tried again."""
        if state_of(path) is None:
            return
        cause: BaseException = error
        while cause.__cause__:
            cause = cause.__cause__
        passes = isinstance(cause, (OSError, MemoryError)) or "out of memory" in str(error)
        is_cut = not passes and _lacks_end(path)
        if passes or is_cut:
            file.attempts.later(time.monotonic())
            if is_patient or file.attempts.is_reported:
                return
        self._fail(path, file, error_of(Path(path), error), again=passes or is_cut)

    def _fail(self, path: str, file: WaitingFile, error: str, again: bool = False) -> None:
        """Write the row of an image that has failed. again: it is tried again from time to time."""
        cells, again = row_of_error(as_utf8(path), error), again and len(self._files) < 2 * MOST_WAITING
        if self._store("results", lambda: self.record.add(self._label(path), file.state, cells, again)):
            file.attempts.is_reported = True
            if not again:
                del self._files[path]
            self._report("failed", f"failed {error}")

    def _finish(self, path: str, file: WaitingFile, found: Detection, seconds: float, digest: str | None) -> None:
        """Write an image's map, panel and row."""
        label, cells = self._label(path), row(path, found, self.detector.thresholds, seconds)
        has_panel = self.predictions.wants_panel(found)

        def write() -> None:
            self.predictions.draw(label, found, has_panel)
            self.record.add(label, file.state, cells, digest=digest)

        if self._store("results", write):
            verdict = found.verdict or "scored"
            del self._files[path]
            self._report(verdict, f"{verdict} {found.score:.4f} {path} {1000 * seconds:.0f} ms")

    def _report(self, verdict: str, line: str) -> None:
        self.counts[verdict] += 1
        _say(line)
        self._write_rows()

    def _store(self, what: str, write: Callable[[], None]) -> bool:
        """Write something; where that fails, say so once, and set the time of the next attempt."""
        try:
            write()
        except (OSError, sqlite3.Error) as error:
            self._cannot_store(what, error)
            return False
        if self._attempts[what].is_reported:
            _say(f"{self.predictions.folder}: {what} can be written again", sys.stderr)
        self._attempts[what] = Attempts()
        return True

    def _cannot_store(self, what: str, error: Exception) -> None:
        attempts = self._attempts[what]
        attempts.later(time.monotonic())
        if not attempts.is_reported:
            text = f"{self.predictions.folder}: {what} cannot be written ({' '.join(str(error).split())}); trying again"
            _say(text, sys.stderr)
        attempts.is_reported = True


def _say(line: str, stream: TextIO | None = None) -> None:
    """Print a line; where the log is on a full disk, do without. A closed pipe ends the program."""
    try:
        print(line, file=stream, flush=True)
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise


def _lacks_end(path: str) -> bool:
    try:
        return has_end(Path(path)) is False
    except OSError:
        return True
