"""Files that a stranger has made: real ones with random changes, and a process of bounded memory that reads them."""

import json
import os
import resource
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import SETTINGS, make_dataset
from in_process import run_here

from runtime.errors import UserError

SECONDS = 1.0  # of processor time, for one file
MEMORY = 2**31  # bytes that a process may take more than at its start
GROWTH = 2**30  # bytes that it may really use more
HANGS = 30  # seconds, after which a reader is ended
SETTING_FILES = ("--config", "config.yaml", "--config", "tiny.yaml")
TINY = """\
model: {base_width: 1, base_channels: 1}
train: {epochs: 1, visualize: false}
metrics: {visualisation: none}
"""
EXTREMES = (b"\0", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x80\0\0\0")


def make_place(root: Path) -> Path:
    """A workplace with networks of width 1, thresholds, results and predictions."""
    make_dataset(root)
    (root / "config.yaml").write_text(SETTINGS.format(root=root.as_posix()), encoding="utf-8")
    (root / "tiny.yaml").write_text(TINY, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        run_here("main", *SETTING_FILES, "--train", "--threshold", "--detection")
        run_here("main", *SETTING_FILES, "--predict", "mvtec/tile/test", "--output", "out")
        run_here("evaluate_checkpoints", *SETTING_FILES, "--registrations", "False")
    return root


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """A file with one to four changes: bits, extreme numbers, pieces removed, repeated, moved or cut off at the end."""
    found = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        # Half of the changes are near the beginning, where the headers are.
        end = len(found) if rng.random() < 0.5 else min(len(found), 128)
        place = int(rng.integers(0, max(end, 1)))
        length = int(rng.choice([1, 2, 4, 8, 64, 1024]))
        kind = rng.integers(0, 7)
        if kind == 0 and found:
            found[min(place, len(found) - 1)] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            extreme = EXTREMES[int(rng.integers(0, len(EXTREMES)))]
            found[place : place + len(extreme)] = extreme
        elif kind == 2:
            del found[place : place + length]
        elif kind == 3:
            found[place:place] = found[place : place + length] * int(rng.integers(1, 4))
        elif kind == 4:
            found[place:place] = rng.bytes(length)
        elif kind == 5:
            del found[place:]
        else:
            found[place : place + length] = rng.bytes(length)
    return bytes(found)


Reader = Callable[[bytes], object]


def problems_of(
    reader: Reader, files: Callable[[int], bytes], numbers: Sequence[int], seconds: float = SECONDS
) -> list[str]:
    """Read files in a fork whose memory is limited; what was wrong: crashes, other errors, time, memory.

    reader: returns, or raises a UserError. A MemoryError is fine: the programs say that memory is short. seconds: of
    processor time that it may take for a file.
    """
    receiving, sending = os.pipe()
    process = os.fork()
    if not process:
        status = 1
        try:
            _read_all(reader, files, numbers, seconds, lambda line: os.write(sending, f"{line}\n".encode()))
            status = 0
        finally:
            os._exit(status)
    os.close(sending)
    found, number = [], None
    with os.fdopen(receiving, encoding="utf-8") as stream:
        for line in stream:
            kind, number, *text = json.loads(line)
            if kind == "problem":
                found.append(f"{number}: {text[0]}")
    _, status = os.waitpid(process, 0)
    if status:
        code = os.waitstatus_to_exitcode(status)
        what = signal.Signals(-code).name if code < 0 else f"status {code}"
        found.append(f"{number} or after it: ended with {what}")
    return found


def _read_all(
    reader: Reader,
    files: Callable[[int], bytes],
    numbers: Sequence[int],
    seconds: float,
    tell: Callable[[str], object],
) -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for number in numbers:
        data = files(number)
        tell(json.dumps(["reads", number]))
        signal.alarm(HANGS)
        start = time.process_time()
        try:
            reader(data)
        except (UserError, MemoryError):
            pass
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                continue  # the programs print the path and what the system says
            tell(json.dumps(["problem", number, f"{type(error).__name__}: {error}"[:300]]))
        took = time.process_time() - start
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if took > seconds:
            tell(json.dumps(["problem", number, f"took {took:.1f} s"]))
        if used - usage > GROWTH:
            tell(json.dumps(["problem", number, f"used {(used - usage) / 2**20:.0f} MB"]))
            usage = used
    signal.alarm(0)
