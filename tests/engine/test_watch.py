"""engine/watch.py, --watch: inference on each new image, once, when its file is complete."""

import contextlib
import os
import shutil
import signal
import sqlite3
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import rows_of, write

from config_file import load_config
from data import folder_watch
from engine import predict, watch, watch_record
from engine.watch_record import Record
from inference.detector import Detector
from reporting import predictions as predictions_file
from reporting.predictions import Predictions, locked
from runtime import signals


def raise_(error):
    def function(*_):
        raise error

    return function


@pytest.fixture
def line(camera, monkeypatch):
    """A watch in this process: `line.start()` begins or restarts it, `line.until(condition)` lets it go on."""
    monkeypatch.chdir(camera)
    monkeypatch.setattr(watch, "FIRST_PAUSE", 0.02)
    started = Line(camera)
    yield started
    started.end()


class Line:
    def __init__(self, root):
        self.folder, self.out, self.spots = root / "camera", root / "out", root / "mvtec/tile/test/spot"
        self.running = self.stack = None
        self.config = root / "config.yaml"

    def start(self, *sets):
        self.end()
        config = load_config(self.config, ["watch.quiet_seconds=0.1", *sets])
        detector, self.stack = Detector.for_new_images(config), contextlib.ExitStack()
        self.stack.enter_context(locked(self.out))
        made_with = predict.made_with(detector, [self.folder])
        predictions = Predictions(self.out, detector.thresholds, made_with, "none", "keep")
        record = self.stack.enter_context(contextlib.closing(Record(self.out / "record.sqlite", self.folder)))
        record.catch_up(predictions)
        source = folder_watch.WatchedFolder(self.folder, config.watch.exclude)
        self.stack.callback(source.stop)
        self.running = watch.Watch(config, source, detector, predictions, record)
        return self

    def end(self):
        if self.stack:
            self.stack.close()
        self.stack = None

    def until(self, condition):
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end, self.names()
            self.running.step()
            time.sleep(0.005)

    def settle(self):
        """Long enough that whatever could still come has come."""
        end = time.monotonic() + 0.4
        self.until(lambda: time.monotonic() > end)

    def rows(self, name="predictions.csv"):
        return rows_of(self.out / name) if (self.out / name).is_file() else []

    def names(self, name="predictions.csv"):
        return sorted(row["path"].removeprefix(f"{self.folder}/") for row in self.rows(name))

    def add(self, name):
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        return shutil.copy(self.spots / "000.png", path)


def test_an_image_whose_size_is_set_first_is_scored_when_it_is_quiet(line):
    """As writers of BMP, TIFF and PPM do; until then its pixels are zeros."""
    line.start().until(lambda: len(line.rows()) == 3)
    whole = Path(write(line.folder.parent / "whole.bmp", np.full((40, 48, 3), 200, np.uint8))).read_bytes()
    path = line.folder / "slow.bmp"
    path.write_bytes(whole[:1000] + bytes(len(whole) - 1000))
    for end in range(1000, len(whole), 1000):
        line.running.step()
        time.sleep(0.02)
        with path.open("r+b") as stream:
            stream.write(whole[:end])
    path.write_bytes(whole)
    line.until(lambda: len(line.rows()) == 4)
    line.settle()
    [row] = [row for row in line.rows() if row["path"].endswith("slow.bmp")]
    assert float(row["score"]) == pytest.approx(
        Detector.load(line.config.parent / "checkpoints/tile/tiny")(np.full((40, 48, 3), 200, np.uint8)).score, abs=1e-6
    )


def test_moved_images_and_excluded_folders_are_not_scored_again(line):
    line.start("watch.exclude=[old, '*_test.png']").until(lambda: len(line.rows()) == 3)
    (line.folder / "done").mkdir()
    os.replace(line.folder / "000.png", line.folder / "done/000.png")
    line.add("old/a.png"), line.add("a_test.png"), line.add("new.png")
    os.link(line.folder / "new.png", line.folder / "link.png")  # the same file twice is no move
    line.until(lambda: len(line.rows()) == 5)
    line.settle()
    line.start("watch.exclude=[old, '*_test.png']").settle()
    before = os.stat(line.folder / "done/000.png")
    with (line.folder / "done/000.png").open("r+b") as stream:  # as a new file with the number of a deleted one
        data = stream.read()
        stream.seek(0)
        stream.write(data[:-1] + b"x")
    os.utime(line.folder / "done/000.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(line.folder / "done/000.png", line.folder / "other.png")
    line.until(lambda: len(line.rows()) == 6)
    assert line.names() == ["000.png", "001.png", "002.png", "link.png", "new.png", "other.png"]


def test_a_fault_of_the_gpu_ends_the_watch_and_marks_no_image(line, monkeypatch):
    """So that a service starts it again."""
    line.start().until(lambda: len(line.rows()) == 3)
    run = Detector.run
    monkeypatch.setattr(Detector, "run", raise_(RuntimeError("CUDA error: an illegal memory access")))
    line.add("new.png")
    with pytest.raises(RuntimeError, match="CUDA"):
        line.settle()
    monkeypatch.setattr(Detector, "run", run)
    line.start().until(lambda: len(line.rows()) == 4)
    assert all(row["verdict"] for row in line.rows())


def test_a_locked_removed_or_rotated_file_of_rows_stops_nothing(line, monkeypatch, capsys):
    line.start().until(lambda: len(line.rows()) == 3)
    append = predictions_file.append_csv
    monkeypatch.setattr(predictions_file, "append_csv", raise_(PermissionError(13, "Permission denied")))
    line.add("locked.png"), line.add("locked 2.png")
    line.until(lambda: line.running.counts.total() == 5)  # scored meanwhile
    line.settle()
    monkeypatch.setattr(predictions_file, "append_csv", append)
    line.until(lambda: len(line.rows()) == 5)
    error = capsys.readouterr().err
    assert error.count("Permission denied") == 1 and "again" in error.splitlines()[-1]
    os.replace(line.out / "predictions.csv", line.out / "rotated.csv")
    line.add("after rotation.png")
    line.until(lambda: line.names() == ["after rotation.png"])
    shutil.rmtree(line.out)
    line.add("after removal.png")
    line.until(lambda: line.names() == ["after removal.png"])
    line.start().settle()
    assert line.names() == ["after removal.png"]  # what was done before the removal is known


def test_results_that_cannot_be_written_for_a_while_are_written_later(line, monkeypatch, capsys):
    line.start().until(lambda: len(line.rows()) == 3)
    draw = Predictions.draw
    monkeypatch.setattr(Predictions, "draw", raise_(OSError(28, "No space left on device")))
    monkeypatch.setattr(predictions_file.report, "write_page", raise_(OSError(28, "No space left on device")))
    line.add("full.png")
    line.settle()
    line.running.finish("title")  # without a report
    monkeypatch.setattr(Predictions, "draw", draw)
    line.until(lambda: len(line.rows()) == 4)
    assert capsys.readouterr().err.count("No space left") == 1 and (line.out / "maps/full.png").is_file()


def test_a_place_that_is_taken_stops_one_image_only(line, monkeypatch):
    """A folder has the name of its map."""
    line.start().until(lambda: len(line.rows()) == 3)
    monkeypatch.setattr(watch, "PATIENCE", 2)
    (line.out / "maps/taken.png").mkdir()
    line.add("taken.png"), line.add("next.png")
    line.until(lambda: len(line.rows()) == 5)
    assert [row["path"].endswith("taken.png") for row in line.rows() if row["error"]] == [True]
    (line.out / "maps/taken.png").rmdir()
    line.until(lambda: len(line.rows()) == 6)
    assert line.rows()[-1]["path"].endswith("taken.png") and line.rows()[-1]["verdict"]


def test_new_thresholds_begin_a_new_file_and_score_nothing_again(line):
    line.start().until(lambda: len(line.rows()) == 3)
    line.start("metrics.threshold_type=max")
    line.add("new.png")
    line.until(lambda: line.names() == ["new.png"])
    line.settle()
    assert line.names() == ["new.png"] and line.names("predictions_1.csv") == ["000.png", "001.png", "002.png"]
    (line.out / "record.sqlite").unlink()
    line.start("metrics.threshold_type=max").settle()
    assert line.names() == ["new.png"]


def test_an_image_that_cannot_be_opened_yet_is_reported_once_and_tried_again(line, monkeypatch):
    line.start().until(lambda: len(line.rows()) == 3)
    monkeypatch.setattr(watch, "PATIENCE", 2)
    has_end = watch.has_end
    monkeypatch.setattr(watch, "has_end", raise_(PermissionError(13, "Permission denied")))
    path = line.add("locked.png")
    line.until(lambda: len(line.rows()) == 4)
    assert "Permission denied" in line.rows()[-1]["error"] and "locked.png" in line.rows()[-1]["error"]
    line.settle()
    line.start().settle()  # a restart reports nothing again
    assert len(line.rows()) == 4
    monkeypatch.setattr(watch, "has_end", has_end)
    line.until(lambda: len(line.rows()) == 5)
    line.settle()
    assert line.rows()[-1]["path"] == str(path) and line.rows()[-1]["verdict"] and len(line.rows()) == 5


def test_images_that_fail_are_rows_and_the_next_are_taken(line, monkeypatch):
    prepare = Detector.prepare

    def fails(self, image, name):
        if "wide" in name:
            raise cv2.error("imgwarp.cpp: too wide")
        return prepare(self, image, name)

    monkeypatch.setattr(Detector, "prepare", fails)
    line.start()
    line.add("wide.png"), line.add("long" * 62 + ".png")
    (line.folder / "text.png").write_text("no image")
    (line.folder / "cut.png").write_bytes((line.spots / "000.png").read_bytes()[:-3])
    os.mkfifo(line.folder / "pipe.png")
    line.until(lambda: len(line.rows()) == 6)
    monkeypatch.setattr(watch, "PATIENCE", 2)
    line.until(lambda: len(line.rows()) == 7)
    line.settle()
    failed = {row["path"].rpartition("/")[2] for row in line.rows() if row["error"]}
    assert failed == {"wide.png", "text.png", "cut.png"} and len(line.rows()) == 7
    assert all(row["path"] in row["error"] for row in line.rows() if row["error"])


def test_a_damaged_record_is_set_aside(line, capsys):
    """Images that have a row are done, also one that was moved."""
    line.start().until(lambda: len(line.rows()) == 3)
    line.end()
    (line.folder / "done").mkdir()
    (line.folder / "000.png").rename(line.folder / "done/000.png")
    old = line.out.parent / "old.sqlite"
    with contextlib.closing(sqlite3.connect(old)) as base:
        base.execute("CREATE TABLE done (path TEXT PRIMARY KEY, size INTEGER)")
        base.commit()
    cut = (line.out / "record.sqlite").read_bytes()[:3000] + bytes(9000)
    for content in (b"no database", cut, old.read_bytes()):
        (line.out / "record.sqlite").write_bytes(content)
        line.start().settle()
        assert len(line.rows()) == 3 and "record.sqlite" in capsys.readouterr().out
        line.end()
    for path in ("day 2/000.png", "001.png"):  # a new image of the name that was moved, and one written anew
        (line.folder / path).parent.mkdir(exist_ok=True)
        shutil.copyfile(line.spots / "001.png", line.folder / path)
        os.utime(line.folder / path, ns=(time.time_ns() + 10**9,) * 2)
    (line.out / "record.sqlite").write_bytes(b"no database")
    line.start().until(lambda: len(line.rows()) == 5)
    line.end()


def test_a_signal_between_a_row_and_its_record_doubles_nothing(line, monkeypatch):
    line.start()
    forget = Record._forget

    def interrupted(self, number):
        os.kill(os.getpid(), signal.SIGTERM)
        forget(self, number)

    monkeypatch.setattr(Record, "_forget", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(signals.Interrupted):
        line.until(lambda: len(line.rows()) == 3)
    monkeypatch.setattr(Record, "_forget", forget)
    for number in signals.SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.signal(signal.SIGTERM, before)
    line.until(lambda: len(line.rows()) == 3)
    line.start().settle()
    assert line.names() == ["000.png", "001.png", "002.png"]


def test_rows_of_a_killed_watch_are_written_once(line):
    line.start().until(lambda: len(line.rows()) == 3)
    record = line.running.record
    record.add("x.png", watch_record.State(1, 2, 3), ["x.png", *[""] * 9])
    record.add("y.png", watch_record.State(1, 2, 4), ["y.png", *[""] * 9])
    line.running.predictions.write([["x.png", *[""] * 9]])  # killed before it forgot this row
    line.start().settle()
    assert [row["path"] for row in line.rows()][3:] == ["x.png", "y.png"]


def test_rows_are_on_the_drive_before_the_record_forgets_them(line, monkeypatch):
    """The record is on the drive after each change, so a loss of power between must not cost the row."""
    order, sync, forget = [], os.fsync, Record._forget
    monkeypatch.setattr(os, "fsync", lambda one: (order.append(os.readlink(f"/proc/self/fd/{one}")), sync(one)))
    monkeypatch.setattr(Record, "_forget", lambda self, number: (order.append("forget"), forget(self, number)))
    line.start().until(lambda: len(line.rows()) == 3)
    line.settle()
    rows = str(line.out / "predictions.csv")
    assert [one for one in order if one in (rows, "forget")] == [rows, "forget"] * 3


def test_rows_that_the_record_cannot_forget_at_once_are_written_once(line, monkeypatch):
    line.start()
    forget, fails = Record._forget, [True, True]

    def fail(self, number):
        if fails:
            fails.pop()
            raise sqlite3.OperationalError("disk I/O error")
        forget(self, number)

    monkeypatch.setattr(Record, "_forget", fail)
    line.until(lambda: not fails and len(line.rows()) >= 3)
    line.settle()
    assert line.names() == ["000.png", "001.png", "002.png"]


def test_a_signal_while_the_record_fails_is_not_lost(line, monkeypatch):
    line.start()

    def fail(self, number):
        os.kill(os.getpid(), signal.SIGTERM)
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(Record, "_forget", fail)
    handlers = {number: signal.getsignal(number) for number in signals.SIGNALS}
    try:
        with pytest.raises(signals.Interrupted):
            line.until(lambda: len(line.rows()) == 3)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
