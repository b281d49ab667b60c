"""Run the modes with a fault at a place, and look at what is left: whole files, an error of two lines, the same end."""

import csv
import errno
import hashlib
import importlib
import io
import json
import os
import shutil
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from faults.places import KILL, Fault, Places

from inference import checkpoint
from runtime import cli as command_line

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT)
LASTING = (errno.EACCES, errno.EDQUOT)  # all that comes after fails too; a mode that tries again would never end
TIMES = {"seconds", "samples_per_second", "time", "checkpoint_state"}  # keys; the last is of a file that is copied
SECONDS = 60  # a run that takes longer hangs


class Mode(NamedTuple):
    """What is run.

    Attributes:
        program: module with main(). arguments: of its command line. needs: modes that come before.
        until: of a mode that does not end by itself: a condition of the folder on which it is interrupted.
    """

    program: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    until: Callable[[Path], bool] | None = None


def all_are_watched(folder: Path) -> bool:
    """Whether each image of the watched folder has a row that is no error."""
    rows = folder / "watched/predictions.csv"
    images = len(list((folder / "mvtec/tile/test").rglob("*.png")))
    with suppress(OSError, csv.Error, KeyError), rows.open(encoding="utf-8", newline="") as stream:
        return len({row["path"] for row in csv.DictReader(stream) if not row["error"]}) == images
    return False


MODES = {
    "train": Mode("main", ("--train", "True")),
    "train, 2 workers": Mode("main", ("--train", "True", "--set", "data.num_workers=2")),
    "threshold": Mode("main", ("--threshold", "True"), ("train",)),
    "detection": Mode("main", ("--detection", "True"), ("train", "threshold")),
    "predict": Mode("main", ("--predict", "mvtec/tile/test", "--output", "predicted"), ("train", "threshold")),
    "watch": Mode(
        "main", ("--watch", "mvtec/tile/test", "--output", "watched"), ("train", "threshold"), all_are_watched
    ),
    "nominal": Mode("main", ("--threshold", "True", "--nominal", "mvtec/tile/test/good"), ("train",)),
    "evaluate": Mode(
        "evaluate_checkpoints",
        ("--checkpoints", "2", "--registrations", "False", "--thresholds", "p_quantile", "optimal"),
        ("train", "threshold"),
    ),
    "best": Mode("check_best_model", (), ("train", "threshold", "evaluate")),
}
RESUMED = {"predict": ("--resume",)}  # flags of the second run


class Outcome(NamedTuple):
    """How a run ended. status: exit status, or minus a signal."""

    status: int
    output: str
    error: str


def run(
    folder: Path,
    mode: Mode,
    fault: Fault | None = None,
    more: Sequence[str] = (),
    seconds: float = SECONDS,
    prepare: Callable[[], object] = lambda: None,
) -> tuple[Outcome, dict]:
    """Run a mode in a fork of this process, and kill it after so many seconds.

    prepare: called in the fork beforehand.

    Returns:
        how it ended; the counts of its places, where it lived to tell them.
    """
    beside = folder.parent / f"{folder.name}.told"
    beside.mkdir(exist_ok=True)
    for name in ("out", "err"):
        (beside / name).touch()  # a kill may come before the fork opens them
    process = os.fork()
    if not process:
        _child(folder, mode, fault, more, beside, prepare)
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.005)
    texts = [(beside / name).read_text(encoding="utf-8", errors="replace") for name in ("out", "err")]
    told = beside / "told.json"
    counts, modules = json.loads(told.read_text(encoding="utf-8") or "[{}, []]") if told.is_file() else ({}, [])
    for name in sorted(set(modules) - sys.modules.keys()):  # the next fork need not import them
        with suppress(Exception):
            importlib.import_module(name)
    shutil.rmtree(beside)
    return Outcome(os.waitstatus_to_exitcode(status), *texts), counts


def _child(
    folder: Path, mode: Mode, fault: Fault | None, more: Sequence[str], beside: Path, prepare: Callable[[], object]
) -> None:
    """Never returns."""
    status = 99
    try:
        for number, name in ((1, "out"), (2, "err")):
            handle = os.open(beside / name, os.O_WRONLY | os.O_CREAT)
            os.dup2(handle, number)
            os.close(handle)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
        os.chdir(folder)
        sys.argv = [f"{mode.program}.py", "--config", str(folder / "config.yaml"), *mode.arguments, *more]
        module = __import__(mode.program)
        places = Places(folder, fault)
        told = os.open(beside / "told.json", os.O_WRONLY | os.O_CREAT)
        prepare()
        places.install()
        if mode.until:
            threading.Thread(target=_interrupt, args=(mode.until, folder, beside / "out"), daemon=True).start()
        try:
            command_line.run(module.main)
        except SystemExit as ended:
            status = int(ended.code or 0)
        os.write(told, json.dumps([places.counts, sorted(sys.modules)]).encode())
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _interrupt(until: Callable[[Path], bool], folder: Path, output: Path) -> None:
    """Send SIGTERM to this process once it has begun to watch, and a condition holds."""
    while "watching" not in output.read_text(encoding="utf-8") or not until(folder):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)


def faults_of(counts: dict[str, int], mode: Mode) -> Iterator[Fault]:
    """Each error at each place, the first and the last time that it is reached."""
    for place, count in sorted(counts.items()):
        for number in sorted({1, count}):
            for error in (KILL, *ERRORS):
                yield Fault(place, number, error, lasts=error in LASTING and mode.until is None)


# ---- what is left


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
    ".pt": checkpoint.read,
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    ".csv": _rows_are_whole,
    ".png": _image_is_whole,
    ".npz": lambda path: [np.load(path)[key] for key in np.load(path)],
    ".html": lambda path: _ends_with(path, "</html>"),
    ".sqlite": _database_is_whole,
}


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


def content_of(folder: Path) -> dict[str, object]:
    """What a run leaves, value by value: weights, images, each value of a JSON and each cell of a CSV file."""
    found: dict[str, object] = {}
    for path in visible_files(folder):
        name = path.relative_to(folder).as_posix()
        if name.startswith(("mvtec/", "textures/")) or "/logs/" in name or path.suffix in (".html", ".txt", ".md"):
            continue
        if path.suffix == ".sqlite":  # of equal content, bytes differ
            continue
        if path.suffix == ".pt":
            state = checkpoint.read(path)["model"]
            data = b"".join(state[key].numpy().tobytes() for key in sorted(state))
            found[name] = hashlib.sha256(data).hexdigest()
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


class Trial:
    """A mode, its folder before it is run, and what it leaves there without a fault."""

    def __init__(self, base: Path, name: str):
        self.name, self.mode = name, MODES[name]
        self.folder, self._before = base / name / "run", base / name / "before"
        shutil.copytree(base / "workplace", self.folder)
        settings = self.folder / "config.yaml"
        settings.write_text(
            settings.read_text(encoding="utf-8").replace("ROOT", self.folder.as_posix()), encoding="utf-8"
        )
        for needed in self.mode.needs:
            outcome, _ = run(self.folder, MODES[needed])
            assert outcome.status == 0, outcome
        shutil.copytree(self.folder, self._before)
        contents = []
        for _ in range(2):
            self.start_anew()
            start = time.monotonic()
            outcome, self.counts = run(self.folder, self.mode)
            assert outcome.status == 0, outcome
            self.seconds = time.monotonic() - start
            contents.append(content_of(self.folder))
        # Times and numbers of processes differ between two runs.
        self._varying = {
            key for key in contents[0].keys() | contents[1].keys() if contents[0].get(key) != contents[1].get(key)
        }
        self._expected = self._lasting(contents[0])
        assert not broken_files(self.folder), broken_files(self.folder)

    def _lasting(self, content: dict[str, object]) -> dict[str, object]:
        return {key: value for key, value in content.items() if key not in self._varying}

    def start_anew(self) -> None:
        """Put the folder back to what it was before the mode was run."""
        shutil.rmtree(self.folder)
        shutil.copytree(self._before, self.folder)

    def problems(self, fault: Fault) -> list[str]:
        """What is wrong after a fault, and after the next run; an empty list for nothing."""
        self.start_anew()
        outcome, _ = run(self.folder, self.mode, fault)
        if fault.error == KILL:
            # Threads reach places in another order: the fault may not be reached again.
            return self.problems_after() if outcome.status == -signal.SIGKILL else []
        if outcome.status not in (0, 1, 2):
            return [f"status {outcome.status}"]
        return _problems_of_message(outcome, fault) + self.problems_after()

    def problems_after_kill(self, seconds: float) -> list[str]:
        """The same after a kill at a moment, in seconds after the start."""
        self.start_anew()
        run(self.folder, self.mode, seconds=seconds)
        return self.problems_after()

    def problems_after(self) -> list[str]:
        """Files that are not whole, and what is wrong after the next run."""
        found = [f"left broken: {one}" for one in broken_files(self.folder)]
        again, _ = run(self.folder, self.mode, more=RESUMED.get(self.name, ()))
        if again.status != 0:
            found.append(f"the next run ends with {again.status}: {again.error.strip()[-300:]}")
        elif different := self.differences():
            found.append(f"the next run leaves another {', '.join(different[:3])}")
        return found

    def differences(self) -> list[str]:
        """Values in the folder that are not those of a run without a fault."""
        content = self._lasting(content_of(self.folder))
        keys = content.keys() | self._expected.keys()
        return sorted(key for key in keys if content.get(key) != self._expected.get(key))


def _problems_of_message(outcome: Outcome, fault: Fault) -> list[str]:
    """An error is one to three lines that say what failed, without a traceback."""
    text = outcome.error + outcome.output
    if "Traceback" in text:
        return ["a traceback"]
    lines = [line for line in text.splitlines() if os.strerror(fault.error) in line]
    if outcome.status == 0:  # done without it, or tried again
        return [f"{len(lines)} messages"] if len(lines) > 1 else []
    return [] if lines else [f"the error does not say {os.strerror(fault.error)}: {text.strip()[-200:]}"]


def make_workplace(base: Path, make_dataset: Callable, settings: str) -> None:
    """A tiny dataset and settings, with ROOT in place of the folder."""
    torch.set_num_threads(1)  # a fork has no other threads
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # imports what takes a second in every fork otherwise
    make_dataset(base / "workplace")
    (base / "workplace/config.yaml").write_text(settings.format(root="ROOT"), encoding="utf-8")
