"""Files: written whole, locked, removed when unused; work on them in threads."""

import csv
import json
import os
import secrets
import shutil
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from runtime.device import core_count
from runtime.errors import UserError

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed anyway
    fcntl = None

PENDING = 2**28  # bytes of arrays that wait for threads
ORPHANED = 86400  # seconds after which an unfinished file counts as left behind where locks cannot tell
BATCH = "DRAEM_BATCH"  # in the environment of a batch's jobs: what it is called
TIMEOUT_SECONDS = 15  # seconds that the loader processes of a killed training may still live


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Says which file it was where a write fails without telling, as on a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path` when the block ends well, and goes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: two processes that write the same file must not write into each other's.
    beside = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part{path.suffix}")
    try:
        with naming(path), _marked(beside, is_folder=False):
            yield beside
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write to; it takes its place when the block ends well, and goes otherwise."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside, old = (folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part") for _ in range(2))
    try:
        with naming(folder), _marked(beside, is_folder=True):
            yield beside
            while True:
                with suppress(FileNotFoundError):
                    os.replace(folder, old)
                try:
                    os.replace(beside, folder)
                    break
                except OSError:
                    if not folder.exists():  # else another process has put its own there meanwhile
                        if old.exists():
                            os.replace(old, folder)
                        raise
                    shutil.rmtree(old, ignore_errors=True)
    finally:
        for path in (beside, old):
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _marked(path: Path, is_folder: bool) -> Iterator[None]:
    """Creates an unfinished file or folder, and marks it as in use until the block or the process ends."""
    while True:
        path.mkdir() if is_folder else path.touch()
        with suppress(FileNotFoundError), shared_lock(path):
            if path.exists():  # else another process took it for a leftover just before it was marked
                yield
                return


class shared_lock:
    """Marks a file or folder as in use until the block ends, or the process and those that it has forked.

    As many processes as like can hold it. Without a block: from `shared_lock(path)` until it is collected.
    """

    def __init__(self, path: Path):
        self._handle = None  # where the file is not there
        self._handle = os.open(path, os.O_RDONLY) if fcntl else None
        with suppress(OSError):  # a drive that knows no locks
            if fcntl:
                fcntl.flock(self._handle, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    __del__ = __exit__


def remove_unused(path: Path) -> bool:
    """Remove a file or folder that no process holds; whether it is gone."""
    with suppress(OSError):  # in use, or gone already
        handle = os.open(path, os.O_RDONLY) if fcntl else None
        try:
            if fcntl:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        finally:
            if fcntl:
                os.close(handle)
    return not path.exists()


def remove_leftovers(folder: Path, pattern: str = ".*.part*") -> None:
    """Remove the unfinished files and folders that processes which are no more have left in a folder."""
    for path in list(folder.glob(pattern)):
        with suppress(FileNotFoundError):
            if fcntl or time.time() - path.stat().st_mtime > ORPHANED:
                remove_unused(path)


def remove_least_recently_used(paths: Iterable[Path], limit: int) -> None:
    """Remove files that no process holds, the longest unused first, until all together have at most `limit` bytes."""
    there = []
    for path in paths:
        with suppress(FileNotFoundError):
            there.append((path.stat().st_mtime_ns, path.stat().st_size, path))
    total = sum(size for _, size, _ in there)
    for _, size, path in sorted(there):
        if total <= limit:
            break
        if remove_unused(path):
            total -= size


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Lock a folder for this process alone; UserError that names the process which has it.

    The lock ends with the process. On a network drive that does not share locks, a note of the owner's host tells.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    note, host = folder / ".owner.json", socket.gethostname()
    lock, owner = FileLock(folder / ".lock"), _read_owner(note)
    who = f"process {owner.get('process', '?')} on host {owner.get('host', '?')}"
    is_dead = owner.get("host") == host and not _is_alive(owner.get("process"))
    try:
        lock.acquire(timeout=TIMEOUT_SECONDS if is_dead else 0)  # its loader processes still have the lock for a while
    except Timeout:
        raise UserError(
            folder, f"{who} is training there", "wait for it, end it, or set another data.run_name"
        ) from None
    try:
        batch = os.environ.get(BATCH)  # of one batch a job runs again only where its node has died
        if owner and owner.get("host") != host and not (batch and owner.get("batch") == batch):
            raise UserError(folder, f"{who} may still be training there", f"if it is not, delete {note}")
        write_text(note, json.dumps({"host": host, "process": os.getpid(), "batch": batch}) + "\n")
        try:
            yield
        finally:
            note.unlink(missing_ok=True)
    finally:
        lock.release()
        if is_new and [path.name for path in folder.iterdir()] == [".lock"]:  # nothing came of it
            shutil.rmtree(folder, ignore_errors=True)


def _read_owner(note: Path) -> dict[str, Any]:
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_alive(process: object) -> bool:
    try:
        if os.name != "nt":  # there the signal would end it
            os.kill(int(process), 0)
    except (ProcessLookupError, TypeError, ValueError):
        return False
    except OSError:  # somebody else's
        return True
    return True


class Background:
    """Work done in threads while the caller goes on. What waits for it has at most PENDING bytes of arrays."""

    def __init__(self):
        self._pool = ThreadPoolExecutor(core_count())
        self._pending: deque[tuple[Future, int]] = deque()

    def do(self, work: Callable, *arguments: Any) -> None:
        """Have it done; raises what an earlier piece has raised."""
        size = sum(value.nbytes for value in arguments if isinstance(value, np.ndarray))
        self._pending.append((self._pool.submit(work, *arguments), size))
        self.wait(PENDING)

    def cancel(self) -> None:
        """Drop what is not begun yet, and wait for the rest; its errors are of no interest any more."""
        self._pool.shutdown(cancel_futures=True)

    def wait(self, pending: int = -1) -> None:
        """Until what is left has at most so many bytes; raises what one of the others has raised."""
        while self._pending and (pending < 0 or sum(size for _, size in self._pending) > pending):
            self._pending.popleft()[0].result()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text; a reader never sees half of it."""
    with atomic_write(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows, the first of them the names of the columns."""
    with atomic_write(path) as beside, beside.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
