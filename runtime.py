"""The process and its files: set-up, device, precision, threads; files written whole, locks, what may be removed."""

import csv
import ctypes
import json
import os
import secrets
import shutil
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from filelock import FileLock, Timeout

from errors import UserError

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed anyway
    fcntl = None

PENDING = 2**28  # bytes of arrays that wait for threads
ORPHANED = 86400  # seconds after which an unfinished file counts as left behind where locks cannot tell
BATCH = "DRAEM_BATCH"  # in the environment of a batch's jobs: what it is called
PATIENCE = 15  # seconds that the loader processes of a killed training may still live


def setup() -> None:
    """Set the process up: the C library's allocator, OpenCV, NumPy. Programs call it, and loader processes too."""
    # One thread a process: the processes share out the work, and OpenCV's pool of threads hangs in one that was forked.
    cv2.setNumThreads(1)
    os.environ.setdefault("OPENCV_IO_ENABLE_OPENEXR", "1")  # built in, but off
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # a broken image is told by its name, once
    # glibc gives large arrays back to the system at once, and clears each new one page by page: as slow as filling it.
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: large blocks come from the heap as well
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap keeps them
    restore_numpy_table()


def restore_numpy_table() -> None:
    """Give NumPy back the table of types that imgaug 0.4.0 reads when it is imported; NumPy 2 has dropped it."""
    if not hasattr(np, "sctypes"):
        np.sctypes = {
            "int": [np.int8, np.int16, np.int32, np.int64],
            "uint": [np.uint8, np.uint16, np.uint32, np.uint64],
            "float": [np.float16, np.float32, np.float64],
            "complex": [np.complex64, np.complex128],
            "others": [bool, object, bytes, str, np.void],
        }


def select_device(setting: str) -> torch.device:
    """`auto`: the first of cuda, mps, cpu that is there. UserError where the one asked for is not. Sets cuDNN up."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if setting == "auto":
        setting = next(name for name, there in available.items() if there)
    device = torch.device(setting)
    if not available[device.type] or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        there = ", ".join(name for name, is_there in available.items() if is_there)
        raise UserError(f"train.device = {setting}: not available here; use one of: auto, {there}")
    torch.backends.cudnn.benchmark = True  # batches have one shape: cuDNN tries which algorithm is fastest for it
    return device


def select_precision(setting: str, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 where the hardware is fast at it (CUDA from Ampere on, CPUs with AMX or AVX512-BF16).

    float32 means all of its digits: it turns cuDNN's TF32 off, which is on by default and keeps 10 bits of 23.
    """
    if setting == "auto":
        if device.type == "cuda":
            fast = torch.cuda.get_device_capability(device) >= (8, 0)
        elif device.type == "cpu":
            capabilities = torch.cpu.get_capabilities()
            fast = capabilities.get("amx_bf16", False) or capabilities.get("avx512_bf16", False)
        else:
            fast = False
        setting = "bf16" if fast else "fp32"
    torch.backends.cudnn.allow_tf32 = setting != "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[setting]


def memory_format(device: torch.device, precision: torch.dtype) -> torch.memory_format:
    """Layout that convolutions are fastest in: measured on CPUs in both precisions, with and without bfloat16.

    On CUDA in bfloat16, whose tensor cores want it; float32 there was not measured.
    """
    is_last = device.type == "cpu" or (device.type == "cuda" and precision == torch.bfloat16)
    return torch.channels_last if is_last else torch.contiguous_format


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Runs the networks in `precision`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16)


def core_count() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_count(setting: int | str, device: torch.device, batches: int | None = None) -> int:
    """Loader processes: the setting; for `auto` the cores (at most 8), half of them where they run the networks too.

    Where the networks run on the CPU, few `batches` are read without any: starting processes takes longer.
    """
    if device.type == "cpu" and batches is not None and batches <= 16:
        return 0
    if setting != "auto":
        return int(setting)
    cores = core_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # that of a launcher of several processes
    return min(8, cores if device.type != "cpu" else cores // 2)


@contextmanager
def worker_errors() -> Iterator[None]:
    """Tells the mistakes that loader processes come upon as if they had been met here."""
    try:
        yield
    except (UserError, OSError) as error:
        text = str(error)
        if not text.startswith("Caught "):
            raise
        # A loader process hands on its whole traceback as text; the message proper is the end of it.
        raise UserError(text.rpartition(f"{type(error).__name__}: ")[2].strip()) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a loader process was ended from outside, often for want of memory; lower data.num_workers, to 0 if need be"
        ) from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Says which file it was where a write fails without telling, as on a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
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
def replacing_folder(folder: Path) -> Iterator[Path]:
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
        with suppress(FileNotFoundError), holding(path):
            if path.exists():  # else another process took it for a leftover just before it was marked
                yield
                return


class holding:
    """Marks a file or folder as in use until the block ends, or the process and those that it has forked.

    As many processes as like can hold it. Without a block: from `holding(path)` until it is collected.
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
def owning(folder: Path) -> Iterator[None]:
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
        lock.acquire(timeout=PATIENCE if is_dead else 0)  # its loader processes still have the lock for a while
    except Timeout:
        mend = "wait for it, end it, or set another data.run_name"
        raise UserError(f"{folder}: {who} is training there; {mend}") from None
    try:
        batch = os.environ.get(BATCH)  # of one batch a job runs again only where its node has died
        if owner and owner.get("host") != host and not (batch and owner.get("batch") == batch):
            raise UserError(f"{folder}: {who} may still be training there; if it is not, delete {note}")
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
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows, the first of them the names of the columns."""
    with replacing(path) as beside, beside.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
