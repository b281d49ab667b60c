"""Device, precision, seeds; files written whole; errors that users can mend."""

import csv
import ctypes
import hashlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from errors import UserError


def setup(_worker: int | None = None) -> None:
    """Set the process up: the C library's allocator, OpenCV, NumPy. Programs call it, and loader processes too."""
    # One thread a process: the processes share out the work, and OpenCV's pool of threads hangs in one that was forked.
    cv2.setNumThreads(1)
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
    """`auto`: bfloat16 where the hardware is fast at it (CUDA from Ampere on, CPUs with AMX or AVX512-BF16)."""
    if setting != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[setting]
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        fast = capabilities.get("amx_bf16", False) or capabilities.get("avx512_bf16", False)
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32


def memory_format(precision: torch.dtype) -> torch.memory_format:
    """Layout that convolutions of this precision are fastest in."""
    return torch.channels_last if precision == torch.bfloat16 else torch.contiguous_format


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Runs the networks in `precision`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16)


def core_count() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_count(setting: int | str, device: torch.device) -> int:
    """Loader processes: the setting; for `auto` the cores (at most 8), half of them where they run the networks too."""
    if setting != "auto":
        return int(setting)
    return min(8, core_count() if device.type != "cpu" else core_count() // 2)


def files_digest(paths: Iterable[Path]) -> str:
    """Digest of names, sizes and times of files."""
    digest = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        digest.update(f"{'/'.join(path.parts[-3:])} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


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
    beside = path.with_name(f".{path.stem}.part{path.suffix}")  # one name: what a killed run left is written over
    try:
        with naming(path):
            yield beside
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


class Background:
    """Work done in threads while the caller goes on, so little at a time that what waits for it stays small."""

    def __init__(self):
        self._pool = ThreadPoolExecutor(core_count())
        self._pending: deque[Future] = deque()

    def do(self, work: Callable, *arguments: Any) -> None:
        """Have it done; raises what an earlier piece has raised."""
        self._pending.append(self._pool.submit(work, *arguments))
        self.wait(2 * core_count())

    def wait(self, pending: int = 0) -> None:
        """Until no more than so many pieces are left; raises what one of the others has raised."""
        while len(self._pending) > pending:
            self._pending.popleft().result()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text; a reader never sees half of it."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows, the first of them the names of the columns."""
    with replacing(path) as beside, beside.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)


@contextmanager
def mendable_errors() -> Iterator[None]:
    """Turns ValueErrors of the rooms below, and errors out of loader processes, into UserError."""
    try:
        yield
    except (UserError, ValueError, OSError) as error:
        if isinstance(error, OSError) and not str(error).startswith("Caught "):
            raise
        # A loader process hands on its whole traceback as text; the message proper is the end of it.
        text = str(error)
        if text.startswith("Caught "):
            text = text.rpartition(f"{type(error).__name__}: ")[2]
        raise UserError(text.strip()) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a loader process was ended from outside, often for want of memory; lower data.num_workers, to 0 if need be"
        ) from error
