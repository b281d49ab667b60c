"""Run the modes with a fault at a place: the error is of two lines, and the next run comes to the same end."""

import csv
import errno
import gc
import importlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from faults.places import KILL, Fault, Places
from faults.remains import broken_files, content_of, state_of

from data.image_io import write_image
from runtime import cli as command_line

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT)
LASTING = (errno.EACCES, errno.EDQUOT)  # all that comes after fails too; a mode that tries again would never end
MOST_LINES = 3  # of a message
SECONDS = 60  # a run that takes longer hangs


class Mode(NamedTuple):
    """What is run.

    Attributes:
        program: module with main(). arguments: of its command line. needs: modes that come before.
        until: of a mode that does not end by itself: a condition of the folder on which it is interrupted.
        only_own: places that the modes before reach too are not tried again.
        status: exit status of a run without a fault.
    """

    program: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    until: Callable[[Path], bool] | None = None
    only_own: bool = False
    status: int = 0


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
    "export": Mode("main", ("--export", "openvino"), ("train", "threshold")),
    "recalibrate": Mode("main", ("--feedback", "feedback.csv", "--recalibrate"), ("train", "threshold")),
    "learn": Mode(
        "main",
        ("--feedback", "feedback.csv", "--learn", "--set", "feedback.epochs=1"),
        ("train", "threshold", "recalibrate"),
        only_own=True,
        status=1,  # one epoch on two images makes nothing better
    ),
    "train_all": Mode("train_all", ("--update_config",)),
}
RESUMED = {"predict": ("--resume",)}  # flags of the second run


class Outcome(NamedTuple):
    """How a run ended. status: exit status, or minus a signal. failed: paths in the folder whose calls failed."""

    status: int
    output: str
    error: str
    failed: Sequence[str] = ()


def run(
    folder: Path,
    mode: Mode,
    fault: Fault | None = None,
    more: Sequence[str] = (),
    seconds: float = SECONDS,
    prepare: Callable[[], object] = lambda: None,
    counts_places: bool = True,
) -> tuple[Outcome, dict]:
    """Run a mode in a fork of this process, and kill it after so many seconds.

    prepare: called in the fork beforehand. counts_places: without it, a run without a fault is faster.

    Returns:
        how it ended; the counts of its places, where it lived to tell them.
    """
    beside = folder.parent / f"{folder.name}.told"
    beside.mkdir(exist_ok=True)
    for name in ("out", "err"):
        (beside / name).touch()  # a kill may come before the fork opens them
    process = os.fork()
    if not process:
        _child(folder, mode, Places(folder, fault) if counts_places else None, more, beside, prepare)
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
    known = told.read_text(encoding="utf-8") if told.is_file() else ""
    counts, modules, failed = json.loads(known or "[{}, [], []]")
    for name in sorted(set(modules) - sys.modules.keys()):  # the next fork need not import them
        with suppress(Exception):
            importlib.import_module(name)
    shutil.rmtree(beside)
    return Outcome(os.waitstatus_to_exitcode(status), *texts, failed), counts


def _child(
    folder: Path, mode: Mode, places: Places | None, more: Sequence[str], beside: Path, prepare: Callable[[], object]
) -> None:
    """Never returns."""
    status = 99
    gc.disable()  # it would copy the memory that the fork shares
    try:
        for number, name in ((1, "out"), (2, "err")):
            handle = os.open(beside / name, os.O_WRONLY | os.O_CREAT)
            os.dup2(handle, number)
            os.close(handle)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
        os.chdir(folder)
        sys.argv = [f"{mode.program}.py", "--config", str(folder / "config.yaml"), *mode.arguments, *more]
        module = __import__(mode.program)
        told = os.open(beside / "told.json", os.O_WRONLY | os.O_CREAT)
        prepare()
        if places:
            places.install()
        if mode.until:
            threading.Thread(target=_interrupt, args=(mode.until, folder, beside / "out"), daemon=True).start()
        try:
            command_line.run(module.main)
        except SystemExit as ended:
            status = int(ended.code or 0)
        counts, failed = (places.counts, places.failed) if places else ({}, [])
        os.write(told, json.dumps([counts, sorted(sys.modules), failed]).encode())
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
        known: set[str] = set()  # places of the modes before
        for needed in self.mode.needs:
            outcome, counts = run(self.folder, MODES[needed])
            assert outcome.status == MODES[needed].status, outcome
            known |= counts.keys()
        shutil.copytree(self.folder, self._before)
        contents = []
        for _ in range(2):
            self.start_anew()
            start = time.monotonic()
            outcome, counts = run(self.folder, self.mode)
            assert outcome.status == self.mode.status, outcome
            self.seconds = time.monotonic() - start
            contents.append(content_of(self.folder))
        self.counts = {place: count for place, count in counts.items() if not (self.mode.only_own and place in known)}
        # Times and numbers of processes differ between two runs.
        self._varying = {
            key for key in contents[0].keys() | contents[1].keys() if contents[0].get(key) != contents[1].get(key)
        }
        self.reached = 0  # faults that happened: threads reach places in another order, and not as often each time
        self._tried: set[frozenset] = set()  # states after which the next run came to the right end
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
        is_killed = outcome.status == -signal.SIGKILL
        self.reached += is_killed or bool(outcome.failed)
        if fault.error == KILL:
            return self.problems_after() if is_killed else []
        if outcome.status not in (0, 1, 2):
            return [f"status {outcome.status}"]
        return _problems_of_message(outcome, fault, self.mode.status) + self.problems_after()

    def problems_after_kill(self, seconds: float) -> list[str]:
        """The same after a kill at a moment, in seconds after the start."""
        self.start_anew()
        run(self.folder, self.mode, seconds=seconds)
        return self.problems_after()

    def problems_after(self) -> list[str]:
        """Files that are not whole, and what is wrong after the next run, which is made once for equal states."""
        found = [f"left broken: {one}" for one in broken_files(self.folder)]
        state = frozenset((key, repr(value)) for key, value in self._lasting(state_of(self.folder)).items())
        if state in self._tried and not found:
            return []
        again, _ = run(self.folder, self.mode, more=RESUMED.get(self.name, ()), counts_places=False)
        if again.status != self.mode.status:
            found.append(f"the next run ends with {again.status}: {again.error.strip()[-300:]}")
        elif different := self.differences():
            found.append(f"the next run leaves another {', '.join(different[:3])}")
        if not found:
            self._tried.add(state)
        return found

    def differences(self) -> list[str]:
        """Values in the folder that are not those of a run without a fault."""
        content = self._lasting(content_of(self.folder))
        keys = content.keys() | self._expected.keys()
        return sorted(key for key in keys if content.get(key) != self._expected.get(key))


def _problems_of_message(outcome: Outcome, fault: Fault, usual: int) -> list[str]:
    """An error is one to three lines that say what failed, without a traceback. usual: status without a fault."""
    text = outcome.error + outcome.output
    if "Traceback" in text:
        return ["a traceback"]
    lines = [line for line in text.splitlines() if os.strerror(fault.error) in line]
    if outcome.status == 0 or (outcome.status == usual and not lines):  # done without it, or tried again
        return [f"{len(lines)} messages"] if len(lines) > 1 else []
    if not lines:
        return [f"the error does not say {os.strerror(fault.error)}: {text.strip()[-200:]}"]
    # A temporary file has the name of the file that it becomes. Where later calls fail too, it may be one of theirs.
    failed = [Path(path) for path in outcome.failed]
    names = {name for one in failed for name in (one.parent.as_posix(), one.name) if name != "."}
    if not any(name in text for name in names):
        return [f"the error does not name {failed[0]}: {text.strip()[-300:]}"]
    return [] if len(message_of(outcome)) <= MOST_LINES else [f"an error of many lines: {text.strip()[-300:]}"]


def message_of(outcome: Outcome) -> list[str]:
    """The lines of standard error from the last message on."""
    return outcome.error[outcome.error.rfind("error: ") :].strip().splitlines()


def make_workplace(base: Path, make_dataset: Callable, settings: str) -> None:
    """A tiny dataset, settings with ROOT in place of the folder, and marks of six brighter images."""
    torch.set_num_threads(1)  # a fork has no other threads
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # imports what takes a second in every fork otherwise
    make_dataset(base / "workplace")
    (base / "workplace/config.yaml").write_text(settings.format(root="ROOT"), encoding="utf-8")
    (base / "workplace/line").mkdir()
    rng, marks = np.random.default_rng(0), ["path,verdict,mark"]
    for number in range(6):
        write_image(base / f"workplace/line/{number}.png", rng.integers(150, 170, (40, 48, 3), dtype=np.uint8))
        marks.append(f"line/{number}.png,anomalous,nominal")
    (base / "workplace/feedback.csv").write_text("\n".join([*marks, ""]), encoding="utf-8")
