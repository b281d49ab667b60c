"""Files: atomic writes, locks, removal of unused files, and writing in background threads."""

import ctypes
import glob
import hashlib
import json
import os
import secrets
import shutil
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from runtime.device import core_count
from runtime.errors import UserError
from runtime.json_file import read_json

try:
    import fcntl
except ImportError:  # Windows: it does not delete open files, so locks are not needed
    fcntl = None  # type: ignore[assignment]

PENDING = 2**28  # bytes, maximum size of the arrays that wait for a background thread
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux: paths are as for other calls; exchange two paths
ORPHANED = 86400  # seconds; without locks, an older unfinished file counts as left over
TOUCH_SECONDS, ABANDONED = 30, 180  # an owner touches its file this often; one not touched for so long has ended
BATCH = "DRAEM_BATCH"  # environment variable with the name of the batch that a job belongs to
TIMEOUT_SECONDS = 15  # loader processes of a killed training exit within this time
LONGEST_NAME = 200  # bytes; file systems take 255, and suffixes are added


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an OSError name the file: also one that has no name, as of a full disk, or that of an unfinished file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename2 or error.filename or str(path)
        error.filename2 = None
        raise


@contextmanager
def atomic_write(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write to. It replaces `path` if the block succeeds, and is deleted if it fails.

    durable: return only once the file is on the drive, so that it outlasts a loss of power.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A unique name: two processes that write the same file must not use one temporary file.
    beside = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(4)}.part{path.suffix}")
    try:
        with naming(path), _marked(beside, is_folder=False):
            yield beside
            if durable:
                sync(beside)
            os.replace(beside, path)
            if durable and os.name != "nt":  # Windows has no such call for folders
                sync(path.parent)
    finally:
        with suppress(OSError):  # it would hide why the block failed
            beside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Return once a file, or the names in a folder, are on the drive."""
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows flushes only what can be written
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder to write to. It replaces `folder` if the block succeeds, and is deleted if it fails.

    Where the system cannot exchange two folders in one step, the old one has another name for a moment. If the process
    ends then, the next call for this folder gives it its name back.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside, old = (folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.{end}") for end in ("part", "old"))
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.*.old"):
        if not folder.exists():
            os.replace(left, folder)
        shutil.rmtree(left, ignore_errors=True)
    try:
        with naming(folder), _marked(beside, is_folder=True):
            yield beside
            while not _exchange(beside, folder):
                with suppress(FileNotFoundError):
                    os.replace(folder, old)
                try:
                    os.replace(beside, folder)
                    break
                except OSError:
                    if not folder.exists():  # else another process has created it in the meantime: try again
                        if old.exists():
                            os.replace(old, folder)
                        raise
                    shutil.rmtree(old, ignore_errors=True)
    finally:
        for path in (beside, old):
            shutil.rmtree(path, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders in one step. False where one is missing, or the system cannot; Linux can."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # another system, or an old C library
        return False
    return rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0


@contextmanager
def _marked(path: Path, is_folder: bool) -> Iterator[None]:
    """Create an unfinished file or folder, and mark it as in use until the block or the process ends."""
    while True:
        path.mkdir() if is_folder else path.touch()
        with suppress(FileNotFoundError), shared_lock(path):
            if path.exists():  # else another process has removed it as left over before it was locked: try again
                yield
                return


class shared_lock:
    """Marks a file or folder as in use, so that `remove_unused` keeps it. Any number of processes can hold the lock.

    As a context manager it ends with the block; otherwise it ends when the object is garbage-collected. It also ends
    when this process and all processes forked from it have exited. FileNotFoundError if the file does not exist.
    """

    def __init__(self, path: Path):
        self._handle: int | None = None  # for __del__ if os.open fails
        if fcntl:
            self._handle = os.open(path, os.O_RDONLY)
            with suppress(OSError):  # the file system does not support locks
                fcntl.flock(self._handle, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    __del__ = __exit__


def remove_unused(path: Path) -> bool:
    """Remove a file or folder unless a process holds a `shared_lock` on it. Returns whether it no longer exists."""
    with suppress(OSError), ExitStack() as stack:  # in use, or removed already
        if fcntl:
            handle = os.open(path, os.O_RDONLY)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return not path.exists()


def remove_leftovers(folder: Path, pattern: str = ".*.part*") -> None:
    """Remove unfinished files and folders that processes have left in a folder when they were killed."""
    for path in list(folder.glob(pattern)):
        with suppress(FileNotFoundError):
            if fcntl or time.time() - path.stat().st_mtime > ORPHANED:
                remove_unused(path)


def remove_least_recently_used(paths: Iterable[Path], limit: int) -> None:
    """Remove the least recently used files that no process holds, until the total size is at most `limit` bytes."""
    files = []
    for path in paths:
        with suppress(FileNotFoundError):
            files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit:
            break
        if remove_unused(path):
            total -= size


@contextmanager
def run_lock(folder: Path, another: str = "set another data.run_name") -> Iterator[None]:
    """Lock a folder exclusively for this process; UserError with the process that holds the lock.

    The lock ends with the process. Some network drives do not share locks between machines; there the file .owner.json
    serves as a second lock. Its owner touches it while it runs, so that an abandoned one is recognized.

    another: how to use another folder, for the message.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    owner_path, host, boot = folder / ".owner.json", socket.gethostname(), _boot()
    lock, owner = FileLock(folder / ".lock"), _read_owner(owner_path)
    holder = f"process {owner.get('process', '?')} on host {owner.get('host', '?')}"
    is_dead = owner.get("host") == host and not _is_alive(owner.get("process"))
    try:
        lock.acquire(timeout=TIMEOUT_SECONDS if is_dead else 0)  # its loader processes hold the lock a little longer
    except Timeout:
        raise UserError(folder, f"{holder} is running there", f"wait for it, end it, or {another}") from None
    try:
        batch = os.environ.get(BATCH)  # a job of the same batch runs again only if the node of the first has died
        # A container has another host name after each start, but on the same machine the lock is enough.
        is_elsewhere = owner and owner.get("host") != host and (boot is None or owner.get("boot") != boot)
        if is_elsewhere and not (batch and owner.get("batch") == batch) and _is_recent(owner_path, folder / ".lock"):
            fix = f"if it is not, delete {owner_path}, or wait {ABANDONED} seconds"
            raise UserError(folder, f"{holder} may still be running there", fix)
        content = {"host": host, "boot": boot, "process": os.getpid(), "batch": batch}
        write_text(owner_path, json.dumps(content) + "\n")
        try:
            with _touched(owner_path):
                yield
        finally:
            with suppress(OSError):  # it would hide why the block failed; one that is left is recognized
                owner_path.unlink(missing_ok=True)
    finally:
        lock.release()
        if created and [path.name for path in folder.iterdir()] == [".lock"]:  # the block has written nothing
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # one that others have written to
                for path in created[1:]:
                    path.rmdir()


@contextmanager
def _touched(path: Path) -> Iterator[None]:
    """Touch a file from time to time, as a sign that this process runs."""
    ended = threading.Event()

    def touch() -> None:
        while not ended.wait(TOUCH_SECONDS):
            with suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=touch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _is_recent(path: Path, own: Path) -> bool:
    """Whether a file was touched lately, by the clock of the file system. own: a file to read that clock from."""
    os.utime(own)
    return own.stat().st_mtime - path.stat().st_mtime < ABANDONED


def _boot() -> str | None:
    """What names this machine since it was started, the same in all of its containers; None where that is not known."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def _read_owner(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_alive(process: Any) -> bool:
    try:
        if os.name != "nt":  # on Windows, os.kill would end the process
            os.kill(int(process), 0)
    except (ProcessLookupError, TypeError, ValueError, OverflowError):
        return False
    except OSError:  # it exists, but belongs to another user
        return True
    return True


class Background:
    """Runs functions in background threads. At most PENDING bytes of arrays wait for a thread."""

    def __init__(self):
        self._pool = ThreadPoolExecutor(core_count())
        self._pending: deque[tuple[Future, int]] = deque()

    def do(self, work: Callable, *arguments: Any) -> None:
        """Call `work(*arguments)` in a thread. Raises the error of an earlier call, if there is one."""
        size = sum(value.nbytes for value in arguments if isinstance(value, np.ndarray))
        self._pending.append((self._pool.submit(work, *arguments), size))
        self.wait(PENDING)

    def cancel(self) -> None:
        """Cancel the calls that have not started, and wait for the others. Their errors are ignored."""
        self._pool.shutdown(cancel_futures=True)

    def wait(self, pending: int = -1) -> None:
        """Wait until the arrays of unfinished calls have at most `pending` bytes; -1: until all calls are finished.

        Raises:
            Exception: the error of a finished call.
        """
        while self._pending and (pending < 0 or sum(size for _, size in self._pending) > pending):
            self._pending.popleft()[0].result()


def write_text(path: Path, text: str, durable: bool = False) -> None:
    """Write a UTF-8 text file atomically: readers see the old or the new file, never a part. See `atomic_write`."""
    with atomic_write(path, durable) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")


def short_hash(text: str) -> str:
    """Eight hexadecimal digits that differ between texts."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def fitting(name: str) -> str:
    """A relative path whose parts are short enough for files with further suffixes; different paths stay different."""
    return "/".join(map(_shortened, name.split("/")))


def _shortened(part: str) -> str:
    data = part.encode("utf-8", "surrogateescape")
    if len(data) <= LONGEST_NAME:
        return part
    return f"{data[: LONGEST_NAME - 9].decode('utf-8', 'ignore')}~{short_hash(part)}"
