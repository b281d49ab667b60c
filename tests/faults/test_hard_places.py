"""Places that fail while the program runs: folders, limits, memory, the clock, images, processes.

Each run is a fork of this process. File systems are mounted in a namespace that ends with it, as root on Linux only.
The first cases of each test, and all of them with `make faults`.
"""

import ctypes
import os
import resource
import shutil
import signal
import sys
import threading
import time
from functools import cache, partial
from pathlib import Path

import pytest
from conftest import SETTINGS, make_dataset
from faults.harness import MODES, MOST_LINES, Trial, make_workplace, message_of, run
from faults.places import IS_WHOLE
from faults.remains import broken_files

WORKERS, EXPORT = "train, 2 workers", "checkpoints/tile/tiny/export"
CLONE_NEWNS, MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 1, 32, 4096, 16384, 1 << 18
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork and namespaces of Linux")


def some(cases, count=1):
    """All cases, or the first ones."""
    return cases if IS_WHOLE else cases[:count]


@pytest.fixture(scope="module")
def trial_of(tmp_path_factory):
    base = tmp_path_factory.mktemp("places")
    make_workplace(base, make_dataset, SETTINGS)
    return cache(lambda name: Trial(base, name))


def mount(kind: str, folder: Path, flags: int = 0, options: str = "") -> None:
    """Mount something that only this process sees."""
    libc = ctypes.CDLL(None, use_errno=True)
    where = str(folder).encode()

    def call(function, *arguments):
        if function(*arguments):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))

    call(libc.unshare, CLONE_NEWNS)
    call(libc.mount, b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    if kind == "bind":
        call(libc.mount, where, where, None, MS_BIND, None)
        call(libc.mount, where, where, None, MS_BIND | MS_REMOUNT | flags, None)
    else:
        call(libc.mount, b"none", where, kind.encode(), flags, options.encode())


@cache
def can_mount() -> bool:
    child = os.fork()
    if not child:
        try:
            mount("tmpfs", Path("/mnt"), 0, "size=1m")
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def begin(trial: Trial, place: str) -> tuple[Trial, Path]:
    """A trial before its run, and a folder of it that is there."""
    trial.start_anew()
    folder = trial.folder / place
    folder.mkdir(exist_ok=True)
    return trial, folder


def assert_told(outcome, *parts, status=2):
    """One to three lines of a message, with each of these parts."""
    assert outcome.status == status, outcome
    assert "Traceback" not in outcome.error, outcome.error
    lines = message_of(outcome)
    assert 1 <= len(lines) <= MOST_LINES, outcome.error
    assert all(any(part in line for line in lines) for part in parts), outcome.error


def assert_goes_on(trial):
    assert trial.problems_after() == []


@pytest.mark.parametrize(
    ("name", "place"),
    some(
        [
            ("train", "checkpoints"),
            ("watch", "watched"),
            ("threshold", "checkpoints"),
            ("detection", "results"),
            ("evaluate", "results"),
            ("best", "results"),
            ("predict", "predicted"),
            ("export", EXPORT),
            ("recalibrate", "results"),
            ("learn", "checkpoints"),
        ],
        2,
    ),
)
def test_a_read_only_folder_is_named(trial_of, name, place):
    if not can_mount():
        pytest.skip("cannot mount")
    trial, folder = begin(trial_of(name), place)
    outcome, _ = run(trial.folder, trial.mode, prepare=partial(mount, "bind", folder, MS_RDONLY))
    assert_told(outcome, str(place), "Read-only file system")
    assert_goes_on(trial)


@pytest.mark.parametrize("kilobytes", some([200, 40]))
@pytest.mark.parametrize(
    ("name", "place"),
    some([("train", "checkpoints"), ("detection", "results"), ("predict", "predicted"), ("export", EXPORT)]),
)
def test_a_full_drive_is_named(trial_of, name, place, kilobytes):
    if not can_mount():
        pytest.skip("cannot mount")
    trial, folder = begin(trial_of(name), place)
    options = f"size={kilobytes}k"
    outcome, _ = run(trial.folder, trial.mode, prepare=partial(mount, "tmpfs", folder, 0, options))
    assert_told(outcome, "No space left on device")
    assert_goes_on(trial)


@pytest.mark.parametrize("name", some([WORKERS, "detection", "predict", "watch"]))
def test_64_open_files_are_enough(trial_of, name):
    trial = trial_of(name)
    trial.start_anew()
    outcome, _ = run(trial.folder, trial.mode, prepare=partial(resource.setrlimit, resource.RLIMIT_NOFILE, (64, 64)))
    assert outcome.status == 0, outcome
    assert_goes_on(trial)


def test_little_shared_memory_is_named(trial_of):
    """64 MB, what Docker gives, are enough for small images."""
    if not can_mount():
        pytest.skip("cannot mount")
    trial = trial_of(WORKERS)
    trial.start_anew()
    outcome, _ = run(trial.folder, trial.mode, prepare=partial(mount, "tmpfs", Path("/dev/shm"), 0, "size=64m"))
    assert outcome.status == 0, outcome
    trial.start_anew()
    more = ("--set", "train.batch_size=8", "--set", "data.img_size=256")
    outcome, _ = run(
        trial.folder, trial.mode, more=more, prepare=partial(mount, "tmpfs", Path("/dev/shm"), 0, "size=1m")
    )
    assert_told(outcome, "data.num_workers", "shared memory")
    assert_goes_on(trial)


def kill_a_child(after: float) -> None:
    """Kill a loader process a while after it was started, as the kernel does when memory is short."""
    own = os.getpid()

    def look() -> None:
        while True:
            children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
            if children:
                time.sleep(after)
                os.kill(int(children[-1]), signal.SIGKILL)
                return
            time.sleep(0.005)

    threading.Thread(target=look, daemon=True).start()


@pytest.mark.parametrize("after", some([0.0, 0.3]))
def test_a_killed_worker_is_reported(trial_of, after):
    trial = trial_of(WORKERS)
    trial.start_anew()
    outcome, _ = run(trial.folder, trial.mode, prepare=partial(kill_a_child, after))
    assert_told(outcome, "data.num_workers", "killed")
    assert_goes_on(trial)


def change_when_read(first: str, other: Path, change) -> None:
    """Change an image once another one is opened."""
    is_done = []

    def look(event: str, arguments: tuple) -> None:
        if event == "open" and str(arguments[0]).endswith(first) and not is_done:
            is_done.append(True)
            change(other)

    sys.addaudithook(look)


def remove(path: Path) -> None:
    path.unlink()


def replace_by_text(path: Path) -> None:
    path.write_text("no image")


@pytest.mark.parametrize("change", some([remove, replace_by_text]))
@pytest.mark.parametrize(
    ("name", "read", "changed", "status"),
    some(
        [
            ("train", "mvtec/tile/train/good/000.png", "mvtec/tile/train/good/003.png", 2),
            ("predict", "mvtec/tile/test/good/000.png", "mvtec/tile/test/spot/001.png", 1),
            ("train", "textures/kind/0.jpg", "textures/kind/1.jpg", 2),
            ("detection", "mvtec/tile/test/good/000.png", "mvtec/tile/test/spot/001.png", 2),
            ("evaluate", "mvtec/tile/test/good/000.png", "mvtec/tile/test/spot/001.png", 1),
        ],
        2,
    ),
)
def test_an_image_that_changes_while_it_is_needed_is_named(trial_of, name, read, changed, status, change):
    trial = trial_of(name)
    trial.start_anew()
    outcome, _ = run(trial.folder, trial.mode, prepare=partial(change_when_read, read, trial.folder / changed, change))
    text = outcome.output + outcome.error
    assert outcome.status == status, outcome
    assert "Traceback" not in text
    assert changed.removeprefix("mvtec/tile/") in text and ("cannot be read" in text or "cannot be decoded" in text)


def set_clock_back() -> None:
    plain, plain_ns, start = time.time, time.time_ns, time.time()
    late = start + 0.2
    time.time = lambda: plain() - 3600 * (plain() > late)
    time.time_ns = lambda: plain_ns() - 3600 * 10**9 * (plain() > late)


@pytest.mark.parametrize("name", some(["watch", "train", "detection", "predict", "evaluate"]))
def test_a_clock_that_is_set_back_changes_nothing(trial_of, name):
    trial = trial_of(name)
    trial.start_anew()
    outcome, _ = run(trial.folder, trial.mode, prepare=set_clock_back)
    assert outcome.status == 0, outcome
    assert trial.differences() == []


CHAIN = ("train", "threshold", "detection", "predict", "evaluate", "best")


def settle(trial, folder: Path) -> Path:
    """A copy of what a run starts from, elsewhere."""
    trial.start_anew()
    shutil.copytree(trial.folder, folder)
    settings = folder / "config.yaml"
    settings.write_text(settings.read_text().replace(trial.folder.as_posix(), folder.as_posix()))
    return folder


def test_long_paths_and_names_change_nothing(trial_of, tmp_path):
    folder = settle(trial_of("train"), tmp_path / ("d" * 120) / ("e" * 120) / "run")
    assert len(str(folder)) > 250
    for path in (folder / "mvtec/tile/test").glob("*/000.png"):
        path.rename(path.with_name(f"{'n' * 246}.png"))
    mask = folder / "mvtec/tile/ground_truth/spot/000_mask.png"
    mask.rename(mask.with_name(f"{'n' * 246}.png"))
    for name in CHAIN:
        outcome, _ = run(folder, MODES[name])
        assert outcome.status == 0, outcome
    assert broken_files(folder) == []


@pytest.mark.skipif(not IS_WHOLE, reason="writes 100,000 files")
def test_100_000_other_files_change_nothing(trial_of, tmp_path):
    folder = settle(trial_of("train"), tmp_path / "run")
    for place in ("mvtec/tile/train/good", "mvtec/tile/test/good", "textures/kind", "checkpoints/tile/tiny"):
        (folder / place).mkdir(parents=True, exist_ok=True)
        for number in range(25_000):
            (folder / place / f"{number:05}.txt").touch()
    start = time.monotonic()
    for name in CHAIN:
        outcome, _ = run(folder, MODES[name])
        assert outcome.status == 0, outcome
    seconds = time.monotonic() - start
    print(f"{seconds:.0f} s")
    assert seconds < 60
